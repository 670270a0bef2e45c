# One image: the binary, the ONNX Runtime library it loads, certificates. Runs as nobody, writes only to /data.
#
#   docker build -t modelgate .
#   docker run -p 8080:8080 -v modelgate-data:/data \
#     -e MODELGATE__SERVER__LISTEN=0.0.0.0:8080 -e MLFLOW_TRACKING_URI=http://mlflow:5000 \
#     modelgate serve --model credit-score@champion

FROM python:3.12-slim-bookworm AS onnxruntime
COPY scripts/fetch-onnxruntime.sh /
RUN sh /fetch-onnxruntime.sh /lib-onnxruntime

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY src src
COPY config config
COPY demo demo
COPY benches benches
RUN cargo build --release --locked --bin modelgate

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 \
 && rm -rf /var/lib/apt/lists/* \
 && install --directory --owner=65532 --group=65532 --mode=0700 /data
COPY --from=build /src/target/release/modelgate /usr/local/bin/modelgate
COPY --from=onnxruntime /lib-onnxruntime /usr/local/lib/modelgate
# The telemetry switch matters for libraries newer than the pinned one.
ENV ORT_DYLIB_PATH=/usr/local/lib/modelgate/libonnxruntime.so \
    ORT_DISABLE_TELEMETRY=1 \
    MODELGATE__DATA_DIR=/data
USER 65532:65532
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/modelgate"]
CMD ["serve"]
