"""Options of the smallest networks of pre-training, for `runpy.run_path`; tests give the sizes of the encoder."""

DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}
CAE = {"decoder_embed_dim": 16, "decoder_num_heads": 4, "regressor_depth": 1, "num_decoder_self_attention": 1}
CAE |= {"num_mask_patches": 4, "min_mask_patches_per_block": 2, "discrete_vae_type": "random_init"}
CAE |= {"discrete_vae_hidden": 8, "decoder_num_classes": 32}
NETWORKS = {
    "mae": {"model": "mae_vit_tiny_patch16", **DECODER},
    "mae_priv": {"model": "pretrain_mae_small_patch16_224", **DECODER},
    "mae_pytorch": {"model": "pretrain_mae_small_patch16_224", **DECODER},
    "cae": {"model": "cae_tiny_patch16_224_8k_vocab", **CAE},
    "simmim": {"model": "pretrain_simmim_tiny_patch16_224"},
}
