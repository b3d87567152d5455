# The calce command, as a user without privileges.
#
#   docker build -t calce .                                         CPU
#   docker build -t calce-cuda --build-arg EXTRAS=cuda12 .          NVIDIA GPUs; run it with --gpus all
#   docker run --rm -v "$PWD:/videos" calce search film.mp4 "a dog catches a ball" --out found

FROM python:3.11-slim AS build
# Extras of the package, separated by commas: cuda12, cuda13, web, convert.
ARG EXTRAS=""
WORKDIR /source
RUN python -m venv /opt/calce
# The dependencies change less often than the code, so they are a layer of their own.
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY calce_jax/__init__.py calce_jax/__init__.py
RUN /opt/calce/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
COPY calce_jax calce_jax
RUN /opt/calce/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
COPY --from=build /opt/calce /opt/calce
RUN useradd --create-home --uid 1000 calce && mkdir /videos && chown calce /videos
# Without a GPU, JAX uses the CPU. A container that is run with another user id has no home of its own: give it a folder
# for caches with -e CALCE_CACHE=... -e HF_HOME=...
ENV PATH=/opt/calce/bin:$PATH \
    PYTHONUNBUFFERED=1
USER calce
WORKDIR /videos
EXPOSE 7860
ENTRYPOINT ["calce"]
CMD ["--help"]
