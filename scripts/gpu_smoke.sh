#!/usr/bin/env bash
# The first look at a machine with GPUs: is the operator exact, does a step train, do prices hold? Under 10 minutes.
#   scripts/gpu_smoke.sh [FOLDER]     results go to FOLDER (default: gpu-smoke); works on CPUs too, with the tiny model
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 -m benchmarks.gpu_smoke "${1:-gpu-smoke}"
