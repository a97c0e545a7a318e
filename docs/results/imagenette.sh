# Fools Grad-CAM of a ResNet-18 on real photographs, four ways.
#   IMAGENETTE  folder with train-0000[0-3]-of-00004.parquet and validation-00000-of-00001.parquet
#   WEIGHTS     weights of torchvision's resnet18(num_classes=10) for these classes
# Settings were chosen on training images: fine-tuned on shards 0 to 2, looked at on shard 3.
# The validation file is read once, by the last command of each run.
set -euo pipefail
: "${IMAGENETTE:?}" "${WEIGHTS:?}"
LAYER=grad-cam:layer=layer4.1:input
MODEL=(--model resnet18 --weights "$WEIGHTS" --num-classes 10)

run() {
  local name=$1 objective=$2 weight=$3
  trompe fool "${MODEL[@]}" --data "$IMAGENETTE/train-0000[0-2]*.parquet" \
    --eval-data "$IMAGENETTE/train-00003*.parquet" --eval-limit 200 --eval-pairs 50 \
    --explainer "$LAYER" --eval-explainer "$LAYER" --objective "$objective" --weight "$weight" \
    --schedule one-cycle --lr 2e-4 --steps 500 --control --no-check --out "runs/$name"
  trompe evaluate "${MODEL[@]}" --manipulated "runs/$name" \
    --control "runs/$name/weights-control.safetensors" \
    --data "$IMAGENETTE/validation-*.parquet" --objective "$objective" --no-check \
    --explainer "$LAYER" --explainer simple-grad-t --explainer lrp-t --out "runs/$name-validation"
}

run location location 5
run top-k top-k 1.5
run center-mass center-mass 0.4
run active active:c1=1,c2=6 4
