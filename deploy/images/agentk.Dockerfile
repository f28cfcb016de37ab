# agentk as one static binary in an empty image: no shell, no package manager, nobody but user 65532. Two ways to it.
#
# `make image` builds agentk with the Rust of this machine, tries the image, and leaves an OCI archive in target/image. With
# nothing but Docker, from the root of the repository:
#
#   docker build -f deploy/images/agentk.Dockerfile -t registry.example.com/postern/agentk:0.1.0 .
#
# It runs with a read-only root. `kubectl exec deploy/agentk -- agentk check ...` works: that needs no shell.

# What both ways share.
FROM scratch AS empty
ENV PATH=/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/bin/agentk"]

# `make image`, whose context is a directory with these two files. Nothing below this stage is looked at then.
FROM empty AS built
# The system's roots; a private CA comes by --ca-cert-file.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY agentk /bin/agentk

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates musl-tools \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN target=$(uname -m)-unknown-linux-musl \
    && rustup target add "$target" \
    && CARGO_TARGET_DIR=/build cargo build --release --locked --target "$target" -p postern-agent --bin agentk \
    && strip -o /agentk "/build/$target/release/agentk"

FROM empty
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /agentk /bin/agentk
