# One image for each program: docker build --target router-sidecar --tag localhost/router-sidecar:0.1.0 .
# (and cache-node, loadtest). `make image` makes the same without a registry.
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked \
 && for name in cache-node router-sidecar loadtest; do sh k8s/images/rootfs.sh "target/release/$name" "/rootfs/$name"; done

FROM scratch AS loadtest
COPY --from=build /rootfs/loadtest /
USER 65532:65532
ENTRYPOINT ["/loadtest"]

FROM scratch AS router-sidecar
COPY --from=build /rootfs/router-sidecar /
USER 65532:65532
ENTRYPOINT ["/router-sidecar"]

FROM scratch AS cache-node
COPY --from=build /rootfs/cache-node /
USER 65532:65532
ENTRYPOINT ["/cache-node"]
