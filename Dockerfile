# Serving on a CPU: docker build --tag earwise . && docker run --rm -p 8000:8000 earwise serve --host 0.0.0.0
# All versions are those of locks/. A CPU build of torch needs a place that has one: --build-arg PIP_EXTRA_INDEX_URL=ADDRESS; without
# it the build for CUDA is installed, which runs on a CPU too and is several GB larger.
FROM python:3.13-slim

ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/earwise
COPY locks locks
RUN export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    && torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' locks/torch-cuda.txt) \
    && { python -m pip install --no-deps "torch==$torch+cpu" \
        || python -m pip install --require-hashes --only-binary :all: --no-deps -r locks/torch-cuda.txt; } \
    && python -m pip install --require-hashes --only-binary :all: --no-deps -r locks/serve.txt

COPY pyproject.toml README.md LICENSE REUSE.toml ./
COPY LICENSES LICENSES
COPY src src
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home earwise
USER earwise
WORKDIR /home/earwise
EXPOSE 8000
ENTRYPOINT ["earwise"]
