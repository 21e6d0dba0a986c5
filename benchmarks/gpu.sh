#!/bin/bash
# The headline table at full resolution on a machine with one GPU and 16 cores, within nine minutes.
#
#     bash benchmarks/gpu.sh [FOLDER]
#
# FOLDER (results, if not given) gets selftrain.csv and gpu.log, and step.json if the training ends within 480 s. The
# same command goes on where it was. Rows that results/selftrain.csv has already are taken over, not trained again.
#
#     DATA=folder      has camvid/ and idd_lite/ below it; settings whose data are not there are left out
#     WHEELS=folder    install the wheels in it first, without the network, beside the Python packages that are there
#     SETTINGS, SEEDS  what to train, in order of worth (camvid_eighth,scenes,camvid_12,idd_30 and 0,1,2)
#     CHANGES=-        of the recipe, with a semicolon between them (-, the recipe as it is); all, if it is empty
#     MINUTES=8.2      from the start of this script; then a training ends with its epoch, or 45 s later, and is kept
#     PROCESSES=6      trainings side by side, which share the GPU; WORKERS=4 reading processes for each
#     BF16=1           bfloat16, 0 for float32
#     RUNS=runs/gpu    folder of the runs
#     MORE="--n 400"   further options of benchmarks/tables.py
#     GPU_SMALL=1      everything tiny, to try this script on a CPU
set -u
cd "$(dirname "$0")/.." || exit 1
folder=${1:-results}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 1
runs=${RUNS:-runs/gpu} data=${DATA:-data} seeds=${SEEDS:-0,1,2} minutes=${MINUTES:-8.2}
processes=${PROCESSES:-6} workers=${WORKERS:-4} bf16=${BF16:-1} more=${MORE:-}
python=$(command -v python3 || command -v python)
export OMP_NUM_THREADS=1 MPLBACKEND=agg PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ "${GPU_SMALL:-}" ]; then
  bf16=0 processes=${PROCESSES:-2} workers=${WORKERS:-0} minutes=${MINUTES:-4} seeds=${SEEDS:-0,1}
  more=${MORE:-"--size 96 --crop 64,96 --n 16 --epochs 2,2"}
fi
if [ "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH=$PYTHONPATH:$site
fi

settings=
for s in $(echo "${SETTINGS:-camvid_eighth,scenes,camvid_12,idd_30}" | tr , ' '); do
  case $s in camvid*) need=/camvid ;; idd*) need=/idd_lite ;; *) need= ;; esac
  if [ -n "$need" ] && [ ! -d "$data$need" ]; then
    echo "no $data$need: $s is left out"
  else
    settings=${settings:+$settings,}$s
  fi
done

# batches go from process to process through shared memory and open files
ulimit -n "$(ulimit -Hn)" 2>/dev/null
if [ "$(df -m --output=avail /dev/shm 2>/dev/null | tail -1 || echo 0)" -lt 4000 ] 2>/dev/null; then
  mount -o remount,size=16G /dev/shm 2>/dev/null || echo "/dev/shm is small: $(df -h /dev/shm 2>/dev/null | tail -1)"
fi
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$python" -c "import torch, torchvision, timm
for m in torch, torchvision, timm: print(m.__name__, m.__version__, end=' ')
print('GPU', torch.cuda.is_available())" || exit 1
cores=$(getconf _NPROCESSORS_ONLN)
echo "$cores cores, $processes processes with $workers readers each; settings $settings; seeds $seeds"

csv=$folder/selftrain.csv
if [ ! -f "$csv" ] && [ -f results/selftrain.csv ]; then cp results/selftrain.csv "$csv"; fi
left=$(awk "BEGIN {print $minutes - $SECONDS / 60}")
"$python" benchmarks/tables.py selftrain --settings "$settings" --seeds "$seeds" --data "$data" --csv "$csv" \
  --out "$runs" --num-workers "$workers" --processes "$processes" --minutes "$left" --changes "${CHANGES--}" \
  $([ "$bf16" = 1 ] && echo --bf16) $more \
  2>&1 | tee "$folder/gpu.log"
status=${PIPESTATUS[0]}
echo "training ended after $SECONDS s"

# what is left of the time: is a step faster in bfloat16 here? and where does it go?
if [ "$SECONDS" -lt "${STEP_BEFORE:-480}" ]; then
  step="--quick --encoders tf_efficientnet_lite0 --crop 352,480 --bs 16"
  [ "${GPU_SMALL:-}" ] && step="--quick --encoders resnet10t --crop 64,64 --bs 2"
  timeout 60 "$python" benchmarks/step.py $step --json "$folder/step.json" 2>&1 | tee -a "$folder/gpu.log"
fi
echo "ended after $SECONDS s with status $status"
exit "$status"
