#!/bin/sh
# Draws the pictures of docs/gallery.md from the runs of scripts/quickstart.sh, which must have ended, and replaces those
# in docs/gallery. Trains two more networks, for one epoch and for ten. All other files go to quickstart/gallery.
# A second run skips finished trainings.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
PATH=$PWD/.venv/bin:$PATH

# Trainings and data
plsc-mae pretrain --config demo/mae_objects --data_path quickstart/objects \
    --output_dir quickstart/gallery/first_epoch --max_train_step 250 --auto_resume
plsc-mae pretrain --config demo/mae_objects --data_path quickstart/objects \
    --output_dir quickstart/gallery/norm_pix --norm_pix_loss --auto_resume
plsc-mae demo-data quickstart/gallery/masked --kind objects --masks --train_per_class 100 --val_per_class 20

# Pictures, in the order of the page
plsc-mae reconstruct --model_path quickstart/gallery/first_epoch/checkpoint-0.pd \
    --other_models quickstart/mae_objects/checkpoint-4.pd quickstart/mae_objects/checkpoint-9.pd \
    --img_path quickstart/objects/val --save_path quickstart/gallery/over_training --max_images 4
plsc-mae plot quickstart/mae_objects --save_path quickstart/gallery/loss.png
plsc-mae reconstruct --model_path quickstart/mae_objects/checkpoint-9.pd --mask_ratio 0.3 \
    --img_path quickstart/objects/val --save_path quickstart/gallery/mask_30 --max_images 2
plsc-mae reconstruct --model_path quickstart/mae_objects/checkpoint-9.pd --mask_ratio 0.6 \
    --img_path quickstart/objects/val --save_path quickstart/gallery/mask_60 --max_images 2
plsc-mae reconstruct --model_path quickstart/mae_objects/checkpoint-9.pd --mask_ratio 0.85 \
    --img_path quickstart/objects/val --save_path quickstart/gallery/mask_85 --max_images 2
plsc-mae reconstruct --model_path quickstart/mae_objects/checkpoint-9.pd \
    --other_models quickstart/gallery/norm_pix/checkpoint-9.pd \
    --img_path quickstart/objects/val --save_path quickstart/gallery/norm_pix_loss --max_images 3
plsc-mae reconstruct --model_path quickstart/gallery/norm_pix/checkpoint-9.pd --patch_stats visible \
    --img_path quickstart/objects/val --save_path quickstart/gallery/patch_stats --max_images 3
plsc-mae reconstruct --model_path quickstart/cae/checkpoint-3.pd \
    --img_path quickstart/shapes/val --save_path quickstart/gallery/cae --max_images 3
plsc-mae explain --model_path quickstart/mae_objects/checkpoint-9.pd --head_fusion mean max min \
    --img_path quickstart/objects/val --save_path quickstart/gallery/attention --max_images 4
plsc-mae report quickstart/mae_objects --img_path quickstart/objects/val --max_images 4 \
    --save_path quickstart/gallery/report.html --panel_path quickstart/gallery/tokens.png
plsc-mae extract --model_path quickstart/cae/checkpoint-3.pd --data_path quickstart/shapes \
    --save_path quickstart/gallery/features.npz --num_pictures 5 --map tsne
plsc-mae segprobe --model_path quickstart/mae_objects/checkpoint-9.pd --data_path quickstart/gallery/masked \
    --save_path quickstart/gallery/segmentation --num_pictures 4

# 256 colors make the files three times smaller.
shrink() { # SOURCE NAME
    python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(256).save(sys.argv[2])' \
        "quickstart/gallery/$1" "docs/gallery/$2.png"
}
mkdir -p docs/gallery
for name in loss tokens features-neighbors features-tsne; do
    shrink $name.png $name
done
for name in over_training mask_30 mask_60 mask_85 norm_pix_loss patch_stats cae attention; do
    shrink $name/sheet.png $name
done
shrink segmentation/predictions.png segmentation
