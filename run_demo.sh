#!/usr/bin/env bash
# The README's steps on a small data set drawn here, with a small network that
# is trained first, in place of ImageNet and the official checkpoint. Every
# command is shown before it runs. It takes minutes on two cores and needs no
# GPU. Everything goes into demo/ (or $DEMO_DIR). Run it again to go on from
# what is there.
#
#   ./run_demo.sh [tf1|tf2]
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit
fi

run() {  # Shows a command, as one would type it, and runs it.
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

copy() {  # Does the same for cp, with the names as one would type them.
  printf '\n$ cp %s %q\n' "$1" "$2"
  # shellcheck disable=SC2086
  cp $1 "$2"
}

if [[ "${1:-}" == analysis ]]; then
  echo 'run_demo.sh: analysis has no TensorFlow; give tf1 or tf2' >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=$(./setup_env.sh "$@")
mkdir -p "${DEMO_DIR:-demo}"
demo=$(cd "${DEMO_DIR:-demo}" && pwd)
root=$PWD
# TensorFlow 2 leaves oneDNN off on processors without AVX-512 VNNI, where it makes
# training up to 3.5 times as fast all the same.
export TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-1}

# shellcheck disable=SC1091
run source "$venv/bin/activate"

# Step 1: the sources, copied flat, as the published instructions do.
run mkdir -p "$demo/resnet" "$demo/imagenet"
copy 'Imagenet/*.py' "$demo/resnet"

# Step 2: archives like ImageNet's, then TFRecords.
run export IMAGENET_HOME="$demo/imagenet"
copy 'Imagenet_tools/*.*' "$IMAGENET_HOME"
run cd "$IMAGENET_HOME"
if [[ ! -e synset_labels.txt ]]; then
  run python3 make_demo_dataset.py --output_dir . \
    --train_images "${TRAIN_IMAGES:-2200}" \
    --validation_images "${VALIDATION_IMAGES:-800}"
fi
run export TRAIN_SHARDS=16 VALIDATION_SHARDS=4
run ./preprocess_imagenet.sh

# In place of the official checkpoint: two epochs at a high rate, one at a low.
run cd "$demo/resnet"
trunk=checkpoints/resnet18_demo
network=(-rv 2 -rs 18 --image_size "${IMAGE_SIZE:-64}"
  --data_dir "$IMAGENET_HOME/tf_records")
run python3 imagenet_main.py --nois_cascaded --te 2 --base_lr 0.5 \
  -ebe 2 --batch_norm_decay 0.9 --random_seed 1 -md "$trunk" "${network[@]}"
run python3 imagenet_main.py --nois_cascaded --te 3 --base_lr 0.05 \
  -ebe 3 --batch_norm_decay 0.9 --random_seed 1 -md "$trunk" "${network[@]}"

# Step 3: evaluate clf2, fine-tune clf0 and clf1; each ends with its dumps.
run python3 imagenet_main.py --eval_only --is_cascaded --classifier_id 2 \
  --data_format channels_first -md checkpoints/clf2 -pmcp "$trunk" \
  "${network[@]}" --num_gpus 0
for classifier in 0 1; do
  run python3 imagenet_main.py --fine_tune --te 2 --is_cascaded \
    --classifier_id $classifier --data_format channels_first \
    -md checkpoints/clf$classifier -pmcp "$trunk" \
    "${network[@]}" --num_gpus 0
done

# Step 4: accuracies. Steps 5 to 7: thresholds, cascades and figures.
run cd "$root"
analysis=(python3 analyze_imagenet_labels.py -dataset_path "$IMAGENET_HOME"
  -softmax_dir_to_validate_against "$demo/resnet/output_softmax")
run "${analysis[@]}"
run "${analysis[@]}" -output_dir "$demo/results"

# Step 8: the cascade itself, on the validation records and on four images.
run cd "$demo/resnet"
cascade=(python3 run_cascade.py -rv 2 -rs 18 --image_size "${IMAGE_SIZE:-64}"
  -pmcp "$trunk" --head_model_dirs checkpoints/clf0,checkpoints/clf1
  --num_gpus 0 --results "$demo/results" --choose cst:10)
run "${cascade[@]}" --data_dir "$IMAGENET_HOME/tf_records" \
  --split validation --output_dir "$demo/cascade"
run mkdir -p "$demo/photos"
run tar xf "$IMAGENET_HOME/ILSVRC2012_img_val.tar" -C "$demo/photos" \
  ILSVRC2012_val_0000000{1..4}.JPEG
run "${cascade[@]}" "$demo/photos"
printf '\nDone in %d min %02d s. The figures are in %s.\n' \
  $((SECONDS / 60)) $((SECONDS % 60)) "$demo/results"
