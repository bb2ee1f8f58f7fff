#!/usr/bin/env bash
# Builds vision.engine from vision.onnx: the vision tower and projector, fp16, for the GPU of this machine.
# NOT VERIFIED ON A JETSON. Run it on the device itself; an engine fits one GPU and one version of TensorRT.
#
#   ./build_tensorrt.sh                 # trtexec as JetPack installs it
#   TRTEXEC=/opt/trt/bin/trtexec ./build_tensorrt.sh
set -euo pipefail
cd "$(dirname "$0")"
trtexec=${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}
[ -x "$trtexec" ] || { echo "no trtexec at $trtexec; install TensorRT (apt-get install tensorrt), or set TRTEXEC" >&2; exit 2; }
rm -f vision.engine vision.engine.sha256
trap 'rm -f vision.engine.partial' EXIT
"$trtexec" --onnx=vision.onnx --saveEngine=vision.engine.partial --fp16 \
  --minShapes=tiles:1x@SIDE@x@SIDE@x3 --optShapes=tiles:2x@SIDE@x@SIDE@x3 --maxShapes=tiles:@MAX_TILES@x@SIDE@x@SIDE@x3 \
  --timingCacheFile=vision.timing --skipInference
mv vision.engine.partial vision.engine
sha256sum vision.onnx.data | cut -d' ' -f1 > vision.engine.sha256
echo "built $(pwd)/vision.engine; vl2 run --engine onnx --provider tensorrt --model $(pwd) ... uses it"
