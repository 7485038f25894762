# An image with Paddle 2.6.2 for NVIDIA GPUs up to Ada (CUDA 11.8): the newest GPU wheel on PyPI. We have not built or run it.
#   docker build -f docker/gpu.Dockerfile -t plsc-mae:gpu .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" plsc-mae:gpu launch pretrain \
#       --config mae/pretrain_vit_base_1600e --data_path imagenet
# For Hopper and Paddle 3, take an image of a newer CUDA and the wheel that `plsc-mae doctor` names.
FROM nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv libgomp1 \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY plsc_mae plsc_mae
COPY configs configs
RUN pip install --no-cache-dir . 'paddlepaddle-gpu==2.6.2' 'numpy<2'
WORKDIR /work
ENTRYPOINT ["plsc-mae"]
