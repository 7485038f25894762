#!/usr/bin/env bash
# Runs a small network on demo data in several layouts: pre-training, fine-tuning, probing and evaluation with data, heads
# or blocks split across processes, from checkpoints of three kinds. Takes minutes on 2 CPU cores.
# Every fine-tuning uses the same batches, so all must reach the same accuracy; the table at the end shows it.
#   bash scripts/parallel.sh [FOLDER]    [parallel]; PYTHON=... for an environment of your own
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh SCRIPT`
set +o posix                                      # where sh is bash
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    . scripts/environment.sh
    make_environment .venv -e . paddlepaddle==3.3.1
    export PYTHON=$PWD/.venv/bin/python
fi
out="${1:-parallel}"
if [ -e "$out" ]; then
    echo "$out exists; name another folder: bash scripts/parallel.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$out"
table="$out/table.md"
printf '| what | processes | layout | images/s | loss | accuracy %% |\n|---|---|---|---|---|---|\n' >"$table"

# run NAME WHAT PROCESSES LAYOUT COMMAND...: runs the command, writes its output to NAME.log, adds a line to the table.
run() {
    local name=$1 what=$2 processes=$3 layout=$4
    shift 4
    echo "$what, $layout: $*"
    if ! NPROC_PER_NODE=$processes LOG_DIR="$out/workers/$name" "$@" >"$out/$name.log" 2>&1; then
        tail -n 20 "$out/$name.log" >&2
        echo "$what failed; its output is in $out/$name.log and $out/workers/$name" >&2
        exit 1
    fi
    echo "| $what | $processes | $layout | $(results "$name") |" | tee -a "$table"
}

# results NAME: images/s, loss and accuracy, from the last lines of a run's logs or the output of an evaluation.
results() {
    local log="$out/$1/log.txt" last
    if [ ! -e "$log" ]; then
        sed -n 's/^\* Acc@1 \([0-9]*\.[0-9]\)[0-9]* .*loss \([0-9.]*\).*/| \2 | \1/p' "$out/$1.log"
        return
    fi
    last=$(tail -n 1 "$log")
    echo "$(tail -n 1 "$out/$1/train.jsonl" | field images_per_second 0) |" \
        "$(field test_loss 6 <<<"$last" || field train_loss 6 <<<"$last") | $(field test_acc1 1 <<<"$last" || true)"
}

# field NAME DIGITS: a number of a line of JSON.
field() {
    local found
    found=$(grep -o "\"$1\": [0-9.e-]*") || return 1
    printf "%.$2f" "${found#*: }"
}

"$PYTHON" -m plsc_mae demo-data "$out/data" --train_per_class 20 --val_per_class 10

sizes="--input_size 64 --patch_size 16 --embed_dim 64 --depth 2 --num_heads 4"
common="--data_path $out/data --epochs 4 --warmup_epochs 1 --accum_iter 1 --num_workers 0 --save_ckpt_freq 4"
pretrain="bash scripts/pretrain.sh --config configs/libai/pretrain_vit_base.yaml $common $sizes --decoder_embed_dim 64
    --decoder_depth 1 --decoder_num_heads 4 --blr 1e-2 --crop_scale 0.5 1 --vis_freq 0"
# Random draws that differ between processes are off, and every layout uses 32 images per update.
finetune="bash scripts/finetune.sh --config configs/libai/finetune_vit_base.yaml $common $sizes --blr 2e-2 --drop_path 0
    --mixup 0 --cutmix 0 --reprob 0 --dist_eval"
linprobe="bash scripts/linprobe.sh --model vit_base_patch16 --norm_eps 1e-5 $common $sizes"

run pretrain "pre-training" 2 "data 2" $pretrain --batch_size 16 --output_dir "$out/pretrain"
run pretrain_t "pre-training" 2 "tensor 2" $pretrain --batch_size 32 --tensor_parallel 2 --output_dir "$out/pretrain_t"

file="$out/pretrain/checkpoint-3.pd"
run d "fine-tuning" 2 "data 2" $finetune --finetune "$file" --batch_size 16 --output_dir "$out/d"
run t "fine-tuning" 2 "tensor 2" $finetune --finetune "$file" --batch_size 32 --tensor_parallel 2 --output_dir "$out/t"
run p "fine-tuning" 2 "pipeline 2" $finetune --finetune "$file" --batch_size 32 --pipeline_parallel 2 --output_dir "$out/p"
run td "fine-tuning" 4 "data 2 x tensor 2" $finetune --finetune "$file" --batch_size 16 --tensor_parallel 2 \
    --output_dir "$out/td"
run pd "fine-tuning" 4 "data 2 x pipeline 2" $finetune --finetune "$file" --batch_size 16 --pipeline_parallel 2 \
    --output_dir "$out/pd"
run tp "fine-tuning" 4 "tensor 2 x pipeline 2" $finetune --finetune "$file" --batch_size 32 --tensor_parallel 2 \
    --pipeline_parallel 2 --output_dir "$out/tp"

# A checkpoint of facebookresearch/mae and one of LiBai, both in PyTorch's format.
# The first does not store the eps of its norms, hence a warning; the config sets it here.
"$PYTHON" -m plsc_mae weights convert "$file" "$out/facebook.pth" --dialect facebook --num_heads 4 --decoder_num_heads 4
"$PYTHON" -m plsc_mae weights convert "$file" "$out/libai.pth" --dialect libai --num_heads 4 --decoder_num_heads 4
run facebook "fine-tuning from facebook.pth" 2 "data 2" $finetune --finetune "$out/facebook.pth" --batch_size 16 \
    --output_dir "$out/facebook"
run libai "fine-tuning from libai.pth" 2 "tensor 2" $finetune --finetune "$out/libai.pth" --batch_size 32 \
    --tensor_parallel 2 --output_dir "$out/libai"

run probe "linear probing" 2 "pipeline 2" $linprobe --finetune "$file" --batch_size 32 --pipeline_parallel 2 \
    --output_dir "$out/probe"

file="$out/d/checkpoint-3.pd"
run eval_d "evaluation of the first" 2 "data 2" $finetune --eval --resume "$file" --batch_size 16
run eval_t "evaluation of the first" 2 "tensor 2" $finetune --eval --resume "$file" --tensor_parallel 2
run eval_p "evaluation of the first" 2 "pipeline 2" $finetune --eval --resume "$file" --pipeline_parallel 2

echo
cat "$table"
