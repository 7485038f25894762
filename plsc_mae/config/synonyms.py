"""Names of other programs for the options, values and commands of this package, for the hints of error messages.

The names are those of timm's train.py, Hugging Face's Trainer, Lightning, mmpretrain, torchvision's references, common
habit, and other commands of plsc_mae. They are not aliases: a command line with an unknown name is refused, and the
message suggests ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_SCHEDULE = ("lr_scheduler", "warmup_epochs", "min_lr")
# Foreign name -> our options, best first. A hint lists those that the command has.
_OPTIONS = {
    "learning_rate": ("lr", "blr", "lr_sweep"),
    "base_lr": ("blr",),
    "lr_base": ("blr",),
    "base_learning_rate": ("blr",),
    "init_lr": ("lr", "blr"),
    "max_lr": ("lr", "blr"),
    "num_epochs": ("epochs",),
    "num_train_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "epoch": ("epochs",),
    "max_steps": ("max_train_step",),
    "num_steps": ("max_train_step", "steps"),
    "bs": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "eval_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "per_device_eval_batch_size": ("batch_size",),
    "samples_per_gpu": ("batch_size",),
    "batch_size_per_gpu": ("batch_size",),
    "gradient_accumulation_steps": ("accum_iter",),
    "accumulate_grad_batches": ("accum_iter",),
    "grad_accum_steps": ("accum_iter",),
    "accum_steps": ("accum_iter",),
    "output": ("output_dir", "save_path"),
    "output_folder": ("output_dir", "save_path"),
    "output_path": ("output_dir", "save_path"),
    "output_file": ("save_path",),
    "output_dir": ("save_path",),
    "out_dir": ("output_dir", "save_path"),
    "out": ("output_dir", "save_path"),
    "save_dir": ("output_dir", "save_path"),
    "save_path": ("output_dir",),
    "work_dir": ("output_dir",),
    "default_root_dir": ("output_dir",),
    "checkpoint_dir": ("output_dir",),
    "ckpt_dir": ("output_dir",),
    "logdir": ("log_dir",),
    **dict.fromkeys(("report_to", "wandb", "tensorboard", "use_wandb", "loggers"), ("logger",)),
    "experiment": ("exp_name",),
    "run_name": ("exp_name",),
    "img_size": ("input_size", "image_size"),
    "image_size": ("input_size",),
    "img_res": ("input_size",),
    "resolution": ("input_size",),
    "train_crop_size": ("input_size",),
    "scale": ("crop_scale", "crop_min_size"),
    "ratio": ("crop_ratio", "mask_ratio"),
    "aspect_ratio": ("crop_ratio",),
    "size": ("input_size", "image_size"),
    "workers": ("num_workers",),
    "dataloader_num_workers": ("num_workers",),
    "workers_per_gpu": ("num_workers",),
    "wd": ("weight_decay",),
    "weight_decay_rate": ("weight_decay",),
    "optimizer": ("opt",),
    "optim": ("opt",),
    "betas": ("opt_betas",),
    "adam_beta1": ("opt_betas",),
    "adam_beta2": ("opt_betas",),
    "adam_epsilon": ("opt_eps",),
    "warmup": ("warmup_epochs",),
    **dict.fromkeys(("sched", "scheduler", "lr_scheduler", "lr_scheduler_type", "lr_schedule"), _SCHEDULE),
    "warmup_ratio": ("warmup_epochs",),
    "lr_warmup_epochs": ("warmup_epochs",),
    "num_warmup_steps": ("warmup_steps", "warmup_epochs"),
    "clip_grad_norm": ("clip_grad",),
    "max_grad_norm": ("clip_grad",),
    "gradient_clip_val": ("clip_grad",),
    "fp16": ("amp", "amp_dtype"),
    "bf16": ("amp", "amp_dtype"),
    "half": ("amp", "amp_dtype"),
    "precision": ("amp", "amp_dtype"),
    "mixed_precision": ("amp", "amp_dtype"),
    "gradient_checkpointing": ("recompute",),
    "grad_checkpointing": ("recompute",),
    "activation_checkpointing": ("recompute",),
    "arch": ("model", "model_path"),
    "architecture": ("model", "model_path"),
    "backbone": ("model", "model_path"),
    "net": ("model", "model_path"),
    "network": ("model", "model_path"),
    "model_name": ("model", "model_path"),
    "model_type": ("model", "model_path"),
    "model": ("model_path",),
    "model_name_or_path": ("model_path", "finetune", "model"),
    "checkpoint": ("model_path", "finetune", "resume"),
    "checkpoint_path": ("model_path", "finetune", "resume"),
    "ckpt": ("model_path", "finetune", "resume"),
    "ckpt_path": ("model_path", "finetune", "resume"),
    "initial_checkpoint": ("model_path", "finetune", "initial_weights"),
    "load_from": ("model_path", "finetune", "initial_weights"),
    "pretrained": ("model_path", "finetune", "initial_weights"),
    "pretrained_weights": ("model_path", "finetune", "initial_weights"),
    "pretrain_path": ("model_path", "finetune", "initial_weights"),
    "weights": ("model_path", "finetune", "initial_weights"),
    "finetune": ("initial_weights",),
    "initial_weights": ("finetune", "model_path"),
    "model_path": ("finetune", "initial_weights"),
    "resume_from": ("resume", "auto_resume"),
    "resume_from_checkpoint": ("resume", "auto_resume"),
    "auto_load": ("auto_resume",),
    "data": ("data_path", "img_path"),
    "data_dir": ("data_path", "img_path"),
    "dataset": ("data_path", "data_set"),
    "data_root": ("data_path",),
    "root": ("data_path",),
    "train_dir": ("data_path",),
    "train_data": ("data_path",),
    "train_data_dir": ("data_path",),
    "train_path": ("data_path",),
    "imagenet_path": ("data_path",),
    "data_path": ("img_path",),
    "img_path": ("data_path",),
    "val_dir": ("eval_data_path",),
    "val_path": ("eval_data_path",),
    "val_data_path": ("eval_data_path",),
    "validation_dir": ("eval_data_path",),
    "test_dir": ("eval_data_path",),
    **dict.fromkeys(("class_weights", "class_weight", "balanced_sampler", "weighted_sampler"), ("balance_classes",)),
    "image": ("img_path", "data_path"),
    "images": ("img_path", "data_path"),
    "image_path": ("img_path", "data_path"),
    "image_dir": ("img_path", "data_path"),
    "img_dir": ("img_path", "data_path"),
    "input": ("img_path", "data_path"),
    "input_dir": ("img_path", "data_path"),
    "num_classes": ("nb_classes",),
    "n_classes": ("nb_classes",),
    "classes": ("nb_classes",),
    "num_labels": ("nb_classes",),
    "evaluate": ("eval",),
    "do_eval": ("eval",),
    "test_only": ("eval",),
    "label_smoothing": ("smoothing",),
    "mixup_alpha": ("mixup",),
    "cutmix_alpha": ("cutmix",),
    "random_erase": ("reprob",),
    "auto_augment": ("aa",),
    "drop_path_rate": ("drop_path",),
    "stochastic_depth": ("drop_path",),
    "dropout": ("drop", "drop_path"),
    "llrd": ("layer_decay",),
    "layer_wise_lr_decay": ("layer_decay",),
    "ema": ("model_ema",),
    "ema_decay": ("model_ema_decay",),
    "mask_prob": ("mask_ratio",),
    "mask_rate": ("mask_ratio",),
    "masking_ratio": ("mask_ratio",),
    "mask": ("mask_ratio",),
    "num_masks": ("num_mask_patches",),
    "norm_pix": ("norm_pix_loss",),
    "decoder_dim": ("decoder_embed_dim",),
    "dec_dim": ("decoder_embed_dim",),
    "dim": ("embed_dim",),
    "hidden_size": ("embed_dim",),
    "width": ("embed_dim",),
    "num_layers": ("depth",),
    "layers": ("depth",),
    "num_hidden_layers": ("depth",),
    "heads": ("num_heads",),
    "num_attention_heads": ("num_heads",),
    "random_seed": ("seed",),
    "manual_seed": ("seed",),
    "log_interval": ("print_freq",),
    "log_freq": ("print_freq",),
    "logging_steps": ("print_freq",),
    "log_every_n_steps": ("print_freq",),
    "save_interval": ("save_ckpt_freq",),
    "save_every": ("save_ckpt_freq",),
    "checkpoint_freq": ("save_ckpt_freq",),
    "save_steps": ("save_ckpt_steps",),
    "save_total_limit": ("keep_last",),
    "checkpoint_hist": ("keep_last",),
    "gpu": ("device",),
    "cuda": ("device",),
    "cpu": ("device",),
    "accelerator": ("device",),
    "no_cuda": ("device",),
    "no_cpu": ("device",),
    "k": ("nb_knn", "knn_k", "topk"),
    **dict.fromkeys(("in_channels", "in_chan", "input_channels", "channels", "num_channels"), ("in_chans",)),
    "num_neighbors": ("nb_knn", "knn_k"),
    "top_k": ("topk",),
    "num_images": ("max_images",),
    "overwrite_output_dir": ("overwrite",),
    "force": ("overwrite",),
    "num_gpus": ("devices", "nproc_per_node"),
    "num_processes": ("nproc_per_node",),
    "nproc": ("nproc_per_node",),
    "np": ("nproc_per_node",),
    "master_addr": ("master",),
    "master_port": ("master",),
    "rdzv_endpoint": ("master",),
    "node_rank": ("rank",),
    "machine_rank": ("rank",),
}

_PROCESSES = "processes are started by `plsc-mae launch --nproc_per_node N COMMAND`"
# Foreign name -> explanation, for commands without the options that `_OPTIONS` lists for the name.
_EXPLANATIONS = {
    **dict.fromkeys(
        ("gpus", "num_gpus", "devices", "nproc_per_node", "processes", "num_processes", "nproc", "nnodes", "num_nodes"),
        _PROCESSES,
    ),
    **dict.fromkeys(("distributed", "ddp", "strategy", "master_addr", "master_port", "nodes", "launcher"), _PROCESSES),
    "do_train": "the command itself trains; leave it out",
}

# Foreign value -> our value of an option with a fixed choice; a hint needs an option that has it.
_CHOICES = {
    **dict.fromkeys(("paddle", "paddle_inference", "paddleinference", "pdmodel", "static"), "inference"),
    **dict.fromkeys(("hf", "transformers"), "huggingface"),
    **dict.fromkeys(("torch", "pytorch"), "timm"),
}

_EVALUATE = "finetune --eval --resume FILE, or linprobe --eval --resume FILE"
_VISUALIZE = "reconstruct, explain or plot"
# Foreign command -> what to use, after the words `use plsc-mae`.
_COMMANDS = {
    **dict.fromkeys(("eval", "evaluate", "evaluation", "test", "val", "validate"), _EVALUATE),
    **dict.fromkeys(("train", "training", "fit"), "pretrain, finetune or linprobe"),
    **dict.fromkeys(
        ("pretraining", "pre_train", "main_pretrain", "run_pretrain", "run_pretraining", "run_mae_pretraining"),
        "pretrain",
    ),
    **dict.fromkeys(
        ("finetuning", "fine_tune", "fine_tuning", "tune", "main_finetune", "run_finetune", "run_class_finetuning"),
        "finetune",
    ),
    **dict.fromkeys(
        ("linear", "linear_probe", "linear_eval", "lincls", "probe", "main_linprobe", "run_lincls", "run_linear"),
        "linprobe",
    ),
    "run_linear_probing": "linprobe",
    "run_attentive": "finetune --config cae/attentive_base",
    "run_knn": "knn",
    "run_mae_vis": "reconstruct",
    "vit_explain": "explain",
    **dict.fromkeys(("config", "recipe", "recipes", "presets", "list_configs"), "configs"),
    **dict.fromkeys(("visualize", "visualise", "visualization", "vis", "draw", "show"), _VISUALIZE),
    **dict.fromkeys(("reconstruction", "inpaint", "demo"), "reconstruct, with pictures of demo-data"),
    **dict.fromkeys(("attention", "attn", "gradcam", "rollout", "saliency"), "explain"),
    **dict.fromkeys(("infer", "inference", "classify", "label"), "predict"),
    **dict.fromkeys(("features", "feature", "embed", "embeddings", "encode", "extract_features"), "extract"),
    **dict.fromkeys(("download", "pull"), "weights fetch NAME"),
    "save": "weights convert IN OUT --dialect NAME",
    **dict.fromkeys(("info", "summary", "load"), "weights inspect FILE"),
    **dict.fromkeys(("models", "list_models", "zoo"), "weights list"),
    **dict.fromkeys(("benchmark", "profile", "speed"), "bench step or bench data"),
    **dict.fromkeys(("env", "check", "collect_env", "verify"), "doctor"),
    **dict.fromkeys(("memory", "estimate", "flops"), "plan pretrain"),
    **dict.fromkeys(("run", "torchrun", "distributed", "ddp", "spawn", "multi"), "launch --nproc_per_node N COMMAND"),
    **dict.fromkeys(("curve", "loss", "log", "tensorboard"), "plot RUN_DIR"),
    "resume": "pretrain --auto_resume, with the options of the run",
}


def hint_at_option(name: str, known: Collection[str], dashes: str = "") -> str:
    """Return the end of an error message about an option of another program, or "" if there is no hint."""
    fitting = [f"'{dashes}{ours}'" for ours in _OPTIONS.get(name.lower(), ()) if ours in known]
    if fitting:
        return f"; did you mean {' or '.join(fitting)}?"
    explanation = _EXPLANATIONS.get(name.lower())
    return f": {explanation}" if explanation else ""


def hint_at_choice(value: str, choices: Collection[object]) -> str:
    """Return the end of an error message about the value of another program, or "" if there is no hint."""
    ours = _CHOICES.get(value.lower().replace("-", "_"))
    return f"; did you mean '{ours}'?" if ours in choices else ""


def hint_at_command(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about a command of another program, or "" if there is no hint.

    Args:
        name: the unknown command.
        known: names of the commands, in one or two words; a second word that only one of them has is recognized too.
    """
    word = name.lower().replace("-", "_")
    fitting = [command for command in known if command.split()[1:] == [word]]
    purpose = fitting[0] if len(fitting) == 1 else _COMMANDS.get(word)
    return f"; use plsc-mae {purpose}" if purpose else ""
