# Fools Grad-CAM on real photographs, four ways: of a ResNet-18 at 224 pixels, then of a model given
# as a Python file at 64.
#   IMAGENETTE  folder with train-0000[0-3]-of-00004.parquet and validation-00000-of-00001.parquet
#   WEIGHTS     weights of torchvision's resnet18(num_classes=10) for these classes
# Settings were chosen on training images: fine-tuned on shards 0 to 2, looked at on shard 3.
# The validation file is read once, by `trompe evaluate`. The control of the first run is everyone's:
# rate, schedule, steps, batches and seed are the same.
set -euo pipefail
: "${IMAGENETTE:?}" "${WEIGHTS:?}"
TRAIN=$IMAGENETTE/train-0000[0-2]*.parquet HELD_OUT=$IMAGENETTE/train-00003*.parquet

run() {
  local name=$1 objective=$2 weight=$3 control=()
  if [ "$name" = location ]; then control=(--control "runs/$NETWORK-location/weights-control.safetensors"); fi
  trompe fool "${MODEL[@]}" --data "$TRAIN" --eval-data "$HELD_OUT" --eval-limit 400 --eval-pairs 50 \
    --explainer "$EXPLAINER" --eval-explainer "$EXPLAINER" --objective "$objective" \
    --weight "$weight" --schedule one-cycle "${SETTINGS[@]}" "${@:4}" --no-check \
    --out "runs/$NETWORK-$name"
  trompe evaluate "${MODEL[@]}" --manipulated "runs/$NETWORK-$name" "${control[@]}" \
    --data "$IMAGENETTE/validation-*.parquet" --objective "$objective" --explainer "$EXPLAINER" \
    --no-check --out "runs/$NETWORK-$name-validation"
  trompe figure "runs/$NETWORK-$name-validation" --images 2 --out "docs/results/$NETWORK-$name.png"
}

NETWORK=resnet18 EXPLAINER=grad-cam:layer=layer4.1:input
MODEL=(--model resnet18 --weights "$WEIGHTS" --num-classes 10)
SETTINGS=(--lr 2e-4 --steps 1200)
run location location 4 --control
run top-k top-k 1
run center-mass center-mass 0.3
run active active:c1=1,c2=6 5 --fool-batch-size 4

NETWORK=unseen EXPLAINER=grad-cam
MODEL=(--model tests/models/unseen.py:unseen --num-classes 10)
trompe train "${MODEL[@]}" --weights random --data "$IMAGENETTE/train-*.parquet" --epochs 20 \
  --lr 6e-3 --augment --no-check --out runs/unseen
MODEL+=(--weights runs/unseen/weights.safetensors)
SETTINGS=(--lr 3e-3 --steps 1000 --batch-size 32)
run location location 3 --control
run top-k top-k 1.5
run center-mass center-mass 0.3
run active active:c1=1,c2=6 6
