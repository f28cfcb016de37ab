# agentk as one static binary in an empty image: no shell, no package manager, nobody but user 65532. From the root of the
# repository:
#
#   docker build -f deploy/images/agentk.Dockerfile -t registry.example.com/postern/agentk:0.1.0 .
#
# It runs with a read-only root. `kubectl exec deploy/agentk -- agentk check ...` works: that needs no shell.
FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates musl-tools \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN rustup target add x86_64-unknown-linux-musl \
    && cargo build --release --locked --target x86_64-unknown-linux-musl -p postern-agent --bin agentk

FROM scratch
# The system's roots; a private CA comes by --ca-cert-file.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/x86_64-unknown-linux-musl/release/agentk /bin/agentk
ENV PATH=/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/bin/agentk"]
