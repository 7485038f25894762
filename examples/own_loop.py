"""Write the training loop yourself, with the data, the objective and the schedule of the package.

Run `python own_loop.py` in an empty folder. What `plsc-mae pretrain` adds to these lines are several processes, mixed
precision, checkpoints that resume with the same bits, logs, and the handling of failures.
"""

from __future__ import annotations

import paddle

from plsc_mae import weights
from plsc_mae.config import MAEConfig
from plsc_mae.data.demo import make_demo_data
from plsc_mae.data.imagefolder import ImageDataset, find_images
from plsc_mae.data.loader import build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.methods import load_method
from plsc_mae.optim import build_adamw

make_demo_data("pictures", image_size=32, train_per_class=4, val_per_class=1)  # or a folder of yours
config = MAEConfig(
    model="mae_vit_tiny_patch16",
    data_path="pictures",
    input_size=(32,),
    patch_size=8,
    embed_dim=48,
    depth=2,
    num_heads=3,
    decoder_embed_dim=48,
    decoder_depth=1,
    decoder_num_heads=3,
    epochs=3,
    warmup_epochs=1,
    batch_size=8,
)
paddle.seed(config.seed)
method = load_method(config.method)
task = method.build_task(config)  # normalization, masks, network and loss
dataset = ImageDataset(find_images(config.data_path, "train"), method.train_transform(config), seed=config.seed)
sampler = EpochBatchSampler(len(dataset), config.batch_size, rank=0, world_size=1, seed=config.seed)
loader = build_loader(dataset, sampler, num_workers=0)
optimizer = build_adamw(task.param_groups(config.weight_decay), betas=config.opt_betas, eps=config.opt_eps)
schedule = task.schedule(config, lr=1e-3, updates_per_epoch=len(loader))

for epoch in range(config.epochs):
    sampler.set_position(epoch)
    for i, batch in enumerate(loader):
        rates = schedule(epoch + i / len(loader), epoch * len(loader) + i)
        optimizer.set_lr(rates.lr)
        out = task(task.prepare(batch))
        out.loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    print(f"epoch {epoch}: loss {float(out.loss):.3f}, learning rate {rates.lr:.1e}")

weights.save(task.model, "own_loop.pth", dialect="facebook")  # a file that the original code loads
print(weights.load(task.model, "own_loop.pth"))
