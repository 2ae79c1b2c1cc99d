# Runs the scripts of this folder, and programs that use it, anywhere:
#
#   docker build -t detector .
#   docker run --rm -v "$PWD":/work detector detect.py --source photos/ --weights best.pt
#
# CUDA: an image that has Python and torch with CUDA, in a version that requirements.txt allows, as the base:
#   docker build -t detector --build-arg BASE=pytorch/pytorch:<version>-cuda<version>-cudnn9-runtime .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD":/work detector train.py --data my.data
#
# Without CUDA torch is smaller: --build-arg TORCH_INDEX=<the index of CPU wheels that PyTorch's start page names>
# For export.py to ONNX and OpenVINO, and for their files: --build-arg EXTRAS=requirements-export.txt
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH_INDEX=""
ARG EXTRAS=""
WORKDIR /app
COPY requirements*.txt constraints.txt ./
# A base that brings torch keeps it: then nothing but the rest is installed, without the versions that CI has tried.
RUN extras="$(for file in ${EXTRAS}; do echo "-r $file"; done)" \
    && if python -c "import torch" 2>/dev/null; then \
        pip install --no-cache-dir -r requirements.txt ${extras}; \
    else \
        pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
        && pip install --no-cache-dir -r requirements.txt -c constraints.txt ${extras}; \
    fi

COPY ./*.py ./
COPY analysis analysis
COPY cfg cfg
COPY data data
COPY engine engine
COPY evaluation evaluation
COPY models models
COPY utils utils
# The demo set is drawn there, by whoever starts the container.
RUN mkdir -m 777 datasets

# What is found and written lies in /work, and belongs to the user of `docker run --user`. Caches go where anybody may write.
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["sh", "-c", "exec python \"/app/$0\" \"$@\""]
CMD ["detect.py", "--help"]
