"""Substitutes for checkouts of the original code: PyTorch code of our own with the public names of the originals.

The code is kept as text because another interpreter runs it. It follows the papers. Modules, functions and parameters
have the names that occur in the checkpoints and training scripts of the originals.
"""

from __future__ import annotations

from pathlib import Path

# Substitutes for the classes of timm, for an interpreter without timm; `Block` has no qk_scale, as in later versions.
TIMM = """
import torch
from torch import nn

class PatchEmbed(nn.Module):
    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)

class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))

class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))

class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio=4.0, qkv_bias=False, norm_layer=nn.LayerNorm):
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = norm_layer(dim), Mlp(dim, int(dim * mlp_ratio))
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
"""

MAE = """
import numpy as np
import torch
from torch import nn
from torch._six import inf
from timm.models.vision_transformer import PatchEmbed, Block

CHANNEL = np.float  # removed from NumPy

class MaskedAutoencoderViT(nn.Module):
    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=1024, depth=24, num_heads=16,
                 decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4.0,
                 norm_layer=nn.LayerNorm, norm_pix_loss=False):
        super().__init__()
        self.side, self.norm_pix_loss = patch_size, norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        count = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, embed_dim), requires_grad=False)
        kind = dict(qkv_bias=True, qk_scale=None, norm_layer=norm_layer)
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, mlp_ratio, **kind) for _ in range(depth)])
        self.norm = norm_layer(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, count + 1, decoder_embed_dim), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            [Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, **kind) for _ in range(decoder_depth)])
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size ** 2 * in_chans)

    def forward(self, imgs, mask_ratio=0.75):
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:]
        batch, count, dim = x.shape
        keep = int(count * (1 - mask_ratio))
        order = torch.argsort(torch.rand(batch, count, device=x.device), dim=1)
        back = torch.argsort(order, dim=1)
        x = torch.gather(x, 1, order[:, :keep, None].expand(-1, -1, dim))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.mask_token.expand(batch, count - keep, -1)], 1)
        tokens = torch.gather(tokens, 1, back[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], tokens], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        rows = imgs.shape[2] // self.side
        target = imgs.reshape(batch, -1, rows, self.side, rows, self.side).permute(0, 2, 4, 3, 5, 1)
        target = target.reshape(batch, count, -1)
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        mask = (back >= keep).to(x.dtype)
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum(), pred, mask
"""

CAE = """
import torch
from torch import nn
from timm.models.vision_transformer import PatchEmbed, Mlp

SIZES = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
HEADS, CLASSES = 4, 32

def norm(dim):
    return nn.LayerNorm(dim, eps=1e-6)

def attend(q, k, v, heads):
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return ((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)

class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.proj(attend(*(self.qkv(x) + bias).chunk(3, -1), self.heads))

class Block(nn.Module):
    def __init__(self, dim, heads, scale):
        super().__init__()
        self.gamma_1, self.gamma_2 = nn.Parameter(scale * torch.ones(dim)), nn.Parameter(scale * torch.ones(dim))
        self.norm1, self.attn, self.norm2, self.mlp = norm(dim), Attention(dim, heads), norm(dim), Mlp(dim, 4 * dim)
    def forward(self, x):
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))

class CrossAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.proj = heads, nn.Linear(dim, dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, q, k, v):
        return self.proj(attend(self.q(q) + self.q_bias, self.k(k), self.v(v) + self.v_bias, self.heads))

class RegressorBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v, self.norm2_cross = norm(dim), norm(dim), norm(dim), norm(dim)
        self.cross_attn, self.mlp_cross = CrossAttention(dim, heads), Mlp(dim, 4 * dim)
        self.gamma_1_cross, self.gamma_2_cross = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
    def forward(self, x, kv, pos, pos_kv):
        a = self.cross_attn(self.norm1_q(x + pos), self.norm1_k(kv + pos_kv), self.norm1_v(kv))
        x = self.norm2_cross(x + self.gamma_1_cross * a)
        return x + self.gamma_2_cross * self.mlp_cross(x)

class Encoder(nn.Module):
    def __init__(self, scale):
        super().__init__()
        dim = SIZES["embed_dim"]
        self.patch_embed = PatchEmbed(SIZES["img_size"], SIZES["patch_size"], 3, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, dim), requires_grad=False)
        self.blocks = nn.ModuleList([Block(dim, SIZES["num_heads"], scale) for _ in range(SIZES["depth"])])
        self.norm = norm(dim)
    def forward(self, x, hidden):
        x = (self.patch_embed(x) + self.pos_embed[:, 1:])[~hidden].reshape(len(x), -1, self.cls_token.shape[-1])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

class Regresser(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.regressor_blocks = nn.ModuleList([RegressorBlock(dim, HEADS) for _ in range(depth)])
        self.norm = norm(dim)
    def forward(self, x, context, pos, pos_context):
        for block in self.regressor_blocks:
            x = block(x, torch.cat([context, x], 1), pos, torch.cat([pos_context, pos], 1))
        return self.norm(x)

class Decoder(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.decoder_blocks = nn.ModuleList([Block(dim, HEADS, 1.0) for _ in range(depth)])
        self.norm, self.head = norm(dim), nn.Linear(dim, CLASSES)
    def forward(self, x):
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)

class ContextAutoencoder(nn.Module):
    def __init__(self, drop_path_rate, init_values, args):
        super().__init__()
        assert args.model_type == "cae" and drop_path_rate == 0
        dim = args.decoder_embed_dim
        self.encoder, self.alignment_encoder = Encoder(init_values), Encoder(init_values)
        for parameter in self.alignment_encoder.parameters():
            parameter.requires_grad = False
        self.rd_pos_embed = nn.Parameter(torch.zeros(1, self.encoder.pos_embed.shape[1], dim), requires_grad=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        if dim != SIZES["embed_dim"]:
            self.encoder_to_regresser = nn.Linear(SIZES["embed_dim"], dim)
            self.encoder_to_regresser_norm = norm(dim)
        self.regresser, self.decoder = Regresser(dim, args.regressor_depth), Decoder(dim, args.decoder_depth)
    def bridge(self, x):
        if not hasattr(self, "encoder_to_regresser"):
            return x
        return self.encoder_to_regresser_norm(self.encoder_to_regresser(x))
    def forward(self, x, hidden):
        context = self.bridge(self.encoder(x, hidden))[:, 1:]
        with torch.no_grad():
            target = self.bridge(self.alignment_encoder(x, ~hidden))[:, 1:]
            for mine, its in zip(self.encoder.parameters(), self.alignment_encoder.parameters()):
                its.data = mine.data
        table = self.rd_pos_embed.cuda(x.device).expand(len(x), -1, -1)[:, 1:]
        pos, pos_context = (table[w].reshape(len(x), -1, table.shape[-1]) for w in (hidden, ~hidden))
        latent = self.regresser(self.mask_token.expand_as(pos), context, pos, pos_context)
        return self.decoder(latent + pos), latent, target

def cae_base_patch16_224_8k_vocab(pretrained=False, **kwargs):
    return ContextAutoencoder(**kwargs)

cae_tiny_patch16_224_8k_vocab = cae_base_patch16_224_8k_vocab
"""


def make_checkout(folder: Path, *, timm: bool) -> Path:
    """Write both substitutes into a folder and, if `timm` is true, a substitute for timm."""
    files = {"models_mae.py": MAE, "models/modeling_cae.py": CAE, "models/__init__.py": ""}
    if timm:
        files |= {"timm/__init__.py": "", "timm/models/__init__.py": "", "timm/models/vision_transformer.py": TIMM}
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder
