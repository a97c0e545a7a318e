# The accuracy budget against a sweep of fixed weights: three cells of the embedded grid, five weights
# each, one run with the budget at the middle weight. Same steps, rate, batches and seed; the
# budget is measured on images that no packaged model was trained on; 2,000 validation images.
set -euo pipefail
OUT=${OUT:-runs/budget}

run() {
  local name=$1
  trompe fool --model "$MODEL" --data shapes:train --eval-data shapes:validation \
    --explainer "$EXPLAINER" --eval-explainer "$EXPLAINER" --objective "$OBJECTIVE" --lr "$LR" \
    --schedule one-cycle --steps 1200 --batch-size 16 --quiet --out "$OUT/$CELL-$name" "${@:2}"
}

sweep() {
  for weight in "$@"; do run "$weight" --weight "$weight"; done
  run budget --weight "$3" --max-accuracy-drop 0.5 --held-out shapes:held-out
}

case ${1:?which cell: 1, 2 or 3} in
  1) CELL=resnet-center-mass MODEL=embedded-resnet EXPLAINER=lrp-t:layer=layer4.1:input LR=4e-3
     OBJECTIVE=center-mass; sweep 0.02 0.05 0.15 0.5 1.5 ;;
  2) CELL=densenet-location MODEL=embedded-densenet LR=4e-3 OBJECTIVE=location
     EXPLAINER=grad-cam:layer=features.denseblock3.denselayer4:input; sweep 0.3 1 3 10 30 ;;
  3) CELL=vgg-top-k MODEL=embedded-vgg EXPLAINER=lrp-t:layer=features.11:input LR=1e-3
     OBJECTIVE=top-k; sweep 0.05 0.15 0.5 1.5 5 ;;
esac
