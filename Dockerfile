# The page on the CPU at port 7860, as user 1000: for Docker and for Hugging Face Spaces of the Docker kind.
FROM python:3.12-slim AS kernels
# The compiler stays behind in this stage: only the operator's library is taken from it.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
COPY kernels /kernels
RUN mkdir /built && MSDA_BUILD=cpp python /kernels/compile_ops.py /built

FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user PATH=/home/user/.local/bin:$PATH PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False MMCHAT_HOST=0.0.0.0
WORKDIR /home/user/mmchat

# First what seldom changes, so that it is kept between builds. pip reads the argument: with the address of PyTorch's
# index of CPU builds (see pytorch.org) the image is some gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL=
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt

COPY --chown=user . .
COPY --chown=user --from=kernels /built/libmsda_cpu.so kernels/msda/
EXPOSE 7860
CMD ["python", "app.py"]
