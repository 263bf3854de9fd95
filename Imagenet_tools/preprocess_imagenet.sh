#!/bin/bash
# Packs the ImageNet archives in $IMAGENET_HOME into TFRecords:
#
#   export IMAGENET_HOME=/folder/of/the/archives
#   cp Imagenet_tools/* $IMAGENET_HOME; cd $IMAGENET_HOME
#   ./preprocess_imagenet.sh [options of build_imagenet_tfrecords.py]
#
# In $IMAGENET_HOME it reads
#   ILSVRC2012_img_train.tar   a tar of one tar per synset
#   ILSVRC2012_img_val.tar     a flat tar
#   synset_labels.txt          the synset of each validation image, in file
#                              order; where it is absent,
#                              imagenet_2012_validation_synset_labels.txt
# and writes
#   tf_records/train/          train-00000-of-01024 and so on
#   tf_records/validation/     validation-00000-of-00128 and so on
#   tf_records/dataset.json    last: where it is, the records are complete
#   {train,validation}_non_onehot.npy     labels in reading order
# It takes about as much space as the archives, and deletes nothing.
#
# Environment: TRAIN_SHARDS (1024), VALIDATION_SHARDS (128), PYTHON (python3),
# which needs TensorFlow, NumPy and Pillow.

set -euo pipefail

fail() {
  echo "preprocess_imagenet.sh: error: $1" >&2
  exit 1
}

for argument in "$@"; do
  if [[ "$argument" == --help || "$argument" == -h ]]; then
    # The comment at the top of this file.
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
  fi
done

[[ -n "${IMAGENET_HOME:-}" ]] || fail \
  'IMAGENET_HOME is not set; export it as the folder of the two archives'

train_archive="$IMAGENET_HOME/ILSVRC2012_img_train.tar"
validation_archive="$IMAGENET_HOME/ILSVRC2012_img_val.tar"
labels="$IMAGENET_HOME/synset_labels.txt"
if [[ ! -f "$labels" ]]; then
  labels="$IMAGENET_HOME/imagenet_2012_validation_synset_labels.txt"
fi
for file in "$train_archive" "$validation_archive" "$labels"; do
  [[ -f "$file" ]] || fail "$file: no such file; put it there first"
done

python="${PYTHON:-python3}"
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
builder="$tools/build_imagenet_tfrecords.py"
[[ -f "$builder" ]] || fail "$builder: no such file; copy Imagenet_tools/* there"
command -v "$python" >/dev/null || fail \
  "$python: no such program; set PYTHON to the Python that has TensorFlow"
"$python" -c 'import numpy, PIL' 2>/dev/null || fail \
  "$python has no NumPy or no Pillow; install requirements.txt or set PYTHON"

exec "$python" "$builder" \
  --train_archive "$train_archive" \
  --validation_archive "$validation_archive" \
  --validation_labels "$labels" \
  --output_dir "$IMAGENET_HOME/tf_records" \
  --labels_dir "$IMAGENET_HOME" \
  --train_shards "${TRAIN_SHARDS:-1024}" \
  --validation_shards "${VALIDATION_SHARDS:-128}" \
  "$@"
