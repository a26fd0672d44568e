# syntax=docker/dockerfile:1

# The service, for CPUs (the default) or for NVIDIA GPUs (--build-arg VARIANT=cuda).
# Run it with --read-only --tmpfs /tmp; docs/operations.md has the rest.
ARG VARIANT=cpu
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG VARIANT
WORKDIR /src
RUN python -m venv /opt/worldcache
ENV PATH=/opt/worldcache/bin:${PATH}
COPY docker/requirements-${VARIANT}.lock ./
RUN pip install --no-cache-dir --require-hashes \
    --extra-index-url https://download.pytorch.org/whl/cpu \
    --requirement requirements-${VARIANT}.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY app app
COPY worldcache worldcache
RUN pip install --no-cache-dir --no-deps .

# Weights beside those that ship: --build-context weights=DIR bakes in what DIR/models holds.
FROM python:${PYTHON} AS weights
RUN mkdir /models

FROM python:${PYTHON} AS runtime
RUN groupadd --gid 10001 worldcache \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin worldcache
COPY --from=build /opt/worldcache /opt/worldcache
COPY --from=weights /models /models
ENV PATH=/opt/worldcache/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/tmp/huggingface \
    XDG_CACHE_HOME=/tmp/cache \
    WORLDCACHE_HOST=0.0.0.0 \
    WORLDCACHE_PORT=8000 \
    WORLDCACHE_LOG_FORMAT=json

FROM runtime AS runtime-cpu
ENV WORLDCACHE_DEVICES=cpu

FROM runtime AS runtime-cuda
ENV WORLDCACHE_DEVICES=cuda:0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# One of the two stages above, so there is no tag.
# hadolint ignore=DL3006
FROM runtime-${VARIANT} AS service
USER 10001:10001
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['WORLDCACHE_PORT']), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["worldcache", "serve"]
