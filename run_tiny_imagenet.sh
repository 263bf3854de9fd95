#!/usr/bin/env bash
# The README's steps on Tiny-ImageNet: 110,000 photographs of 200 of ImageNet's
# classes, 64 x 64 pixels. A ResNet-v2-18 is trained first, in place of the
# official checkpoint; then the two classifiers, once for each of three seeds.
# It ends with a table of means and deviations. Every command is shown before
# it runs. It takes hours on two cores and needs no GPU. Everything goes into
# tiny_imagenet/ (or $TINY_DIR). Run it again to go on from what is there; what
# is done is not done again.
#
#   ./run_tiny_imagenet.sh [DATA]
#
# DATA is tiny-imagenet-200.zip or the folder that is in it. Without DATA the
# zip is downloaded (237 MB).
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit
fi

url=http://cs231n.stanford.edu/tiny-imagenet-200.zip

# Stages of the training: image size (a multiple of 32), epochs so far, rate,
# epochs from one evaluation to the next. At 32 pixels an epoch takes a third of
# the time, and what is learned there carries over. The rate rises over five
# epochs, as in the official schedule, and then falls to almost nothing by even
# steps, for a training of ten epochs. Batch normalization averages over fewer
# steps than usual, as these are short trainings.
trunk_stages=${TRUNK_STAGES:-32:5:0.2:5 64:6:0.16:1 64:7:0.12:1 64:8:0.08:1 64:9:0.04:1 64:10:0.01:1}
# A random crop keeps half of the image or more. The official crops may be a tenth
# of it, 20 x 20 pixels, and are meant for trainings of 90 epochs.
min_crop_area=${MIN_CROP_AREA:-0.5}
# The same of the classifiers: epochs so far, rate.
head_stages=${HEAD_STAGES:-1:0.2 2:0.04}
seeds=${SEEDS:-1 2 3}
image_size=${IMAGE_SIZE:-64}
batch_size=${BATCH_SIZE:-128}
train_shards=${TRAIN_SHARDS:-64}
validation_shards=${VALIDATION_SHARDS:-16}
# Epsilons, in percent: of cst, run at batch 32; of pareto and risk at batch 32
# and of cst at batch 1.
epsilons=${EPSILONS:-0,1,2,5,10}
few_epsilons=${FEW_EPSILONS-2,5}

die() { echo "run_tiny_imagenet.sh: $*" >&2; exit 1; }

run() {  # Shows a command, as one would type it, and runs it.
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

(($# < 2)) || die "one DATA at most, not $*"
[[ -z "${1:-}" || -e "$1" ]] || die "$1: is not there; give" \
  "tiny-imagenet-200.zip, or the folder that is in it"
data=${1:+$(realpath "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=$(./setup_env.sh tf2)
mkdir -p "${TINY_DIR:-tiny_imagenet}"
tiny=$(cd "${TINY_DIR:-tiny_imagenet}" && pwd)
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
# TensorFlow leaves oneDNN off on processors without AVX-512 VNNI, where it makes
# this training 3.5 times as fast all the same.
export TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-1}

# shellcheck disable=SC1091
run source "$venv/bin/activate"

# is_done MODEL_DIR RUN EPOCHS: whether results.json there has such a run, of at
# least so many epochs.
is_done() {
  python3 - "$@" <<'END_PYTHON'
import json
import sys
model_dir, name, epochs = sys.argv[1:]
try:
  with open(model_dir + '/results.json') as results_file:
    entry = json.load(results_file)[name]
  done = 'results' in entry and entry['flags']['train_epochs'] >= int(epochs)
except (FileNotFoundError, KeyError):
  done = False
sys.exit(not done)
END_PYTHON
}

# ---- Records ----------------------------------------------------------------

if [[ ! -e $tiny/tf_records/dataset.json ]]; then
  if [[ -z $data ]]; then
    data=$tiny/tiny-imagenet-200.zip
    if [[ ! -e $data ]]; then
      run curl -f -L -C - -o "$data.unfinished" "$url" || die "$url cannot be" \
        "downloaded; give this command again to go on, or get the file" \
        "elsewhere and name it: ./run_tiny_imagenet.sh tiny-imagenet-200.zip"
      mv "$data.unfinished" "$data"
    fi
  fi
  if [[ -f $data ]]; then
    zip=$data
    data=$tiny/data/tiny-imagenet-200
    if [[ ! -e $data ]]; then
      python3 -m zipfile -l "$zip" >/dev/null 2>&1 ||
        die "$zip: is not a whole zip; download it again ($url)"
      # The folder gets its name when all is in it.
      rm -rf "$tiny/data.unfinished"
      run python3 -m zipfile -e "$zip" "$tiny/data.unfinished"
      mv "$tiny/data.unfinished" "$tiny/data"
      [[ -e $data ]] || die "$zip: has no tiny-imagenet-200/ in it; remove" \
        "$tiny/data and give the zip of $url"
    fi
  fi
  run python3 Imagenet_tools/build_imagenet_tfrecords.py \
    --image_folder "$data" --output_dir "$tiny/tf_records" \
    --train_shards "$train_shards" --validation_shards "$validation_shards"
fi

# ---- The network, in place of the official checkpoint -----------------------

network=(-rv 2 -rs 18 --num_gpus 0 --data_dir "$tiny/tf_records")
for stage in $trunk_stages; do
  IFS=: read -r size epochs rate between <<<"$stage"
  is_done "$tiny/trunk" 'train clf2' "$epochs" ||
    run python3 Imagenet/imagenet_main.py --nois_cascaded --te "$epochs" \
      --base_lr "$rate" -ebe "$between" -bs "$batch_size" \
      --min_crop_area "$min_crop_area" --batch_norm_decay 0.99 \
      --random_seed 1 -md "$tiny/trunk" \
      "${network[@]}" --image_size "$size"
done

# ---- Classifiers, dumps, analysis, and images that leave ---------------------

network+=(--image_size "$image_size")
for seed in $seeds; do
  here=$tiny/seed$seed
  heads=(-md "$here/heads" -pmcp "$tiny/trunk" "${network[@]}")
  for stage in $head_stages; do
    IFS=: read -r epochs rate <<<"$stage"
    is_done "$here/heads" 'fine_tune clf0,clf1' "$epochs" ||
      run python3 Imagenet/imagenet_main.py --fine_tune --is_cascaded \
        --classifier_id 0,1 --te "$epochs" --base_lr "$rate" \
        -ebe "$epochs" -bs "$batch_size" \
        --min_crop_area "$min_crop_area" --batch_norm_decay 0.99 \
        --random_seed "$seed" --nodump_softmaxes "${heads[@]}"
  done
  is_done "$here/heads" 'eval_only clf0,clf1,clf2' 0 ||
    run python3 Imagenet/imagenet_main.py --eval_only --is_cascaded \
      --classifier_id 0,1,2 -bs "$batch_size" \
      --softmax_dir "$here/output_softmax" "${heads[@]}"
  [[ -e $here/profile/stage_seconds.json ]] ||
    run python3 Imagenet/run_cascade.py --profile_stages -bs 32 \
      --output_dir "$here/profile" "${heads[@]}"
  [[ -e $here/results/summary.json ]] ||
    run python3 analyze_imagenet_labels.py -dataset_path "$tiny" \
      -softmax_dir_to_validate_against "$here/output_softmax" \
      -cost "$here/profile/stage_seconds.json" -output_dir "$here/results"
  # Each line is a batch size, a setting that --choose takes, and its folder.
  list=(python3 benchmarks/tiny_imagenet_table.py "$here")
  settings=$("${list[@]}" --settings 32 --methods cst --epsilons "$epsilons")
  if [[ -n $few_epsilons ]]; then
    list+=(--epsilons "$few_epsilons")
    settings+=$'\n'$("${list[@]}" --settings 32 --methods pareto,risk)
    settings+=$'\n'$("${list[@]}" --settings 1 --methods cst)
  fi
  while read -r batch choice folder; do
    [[ -e $here/cascade/$folder/run.json ]] ||
      run python3 Imagenet/run_cascade.py --results "$here/results" \
        --choose "$choice" --split validation -bs "$batch" \
        --output_dir "$here/cascade/$folder" "${heads[@]}" </dev/null
  done <<<"$settings"
done

# ---- The table --------------------------------------------------------------

folders=()
for seed in $seeds; do folders+=("$tiny/seed$seed"); done
run python3 benchmarks/tiny_imagenet_table.py "${folders[@]}" \
  --output_dir "$tiny"
printf '\nDone in %d min. The table is in %s.\n' \
  $((SECONDS / 60)) "$tiny/table.md"
