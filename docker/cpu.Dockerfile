# An image with Paddle for the CPU. Build it in the repository's folder and train on pictures of the host's folder:
#   docker build -f docker/cpu.Dockerfile -t plsc-mae:cpu .
#   docker run --rm -v "$PWD:/work" plsc-mae:cpu pretrain --config demo/mae --data_path pictures --output_dir run
# The full image of Python has libgomp, which Paddle needs and the slim image lacks.
FROM python:3.11
WORKDIR /src
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY plsc_mae plsc_mae
COPY configs configs
RUN pip install --no-cache-dir '.[cpu]'
RUN plsc-mae doctor
WORKDIR /work
ENTRYPOINT ["plsc-mae"]
