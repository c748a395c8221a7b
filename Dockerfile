# The same three images as `helm/build-images` makes, for those who have a container engine:
#
#   docker build --target registry --tag coral-registry .        also: operator, warmer
#
# Static programs, nothing else: roots of public certificate authorities are inside the programs.

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends cmake gcc g++ libc6-dev make
WORKDIR /coral
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN target=$(uname -m)-unknown-linux-gnu \
 && cargo build --locked --profile dist --target "$target" -p coral-registry -p coral-operator -p coral-warmer \
 && mkdir /out \
 && mv "target/$target/dist/coral-registry" "target/$target/dist/coral-operator" "target/$target/dist/coral-warmer" /out/

FROM scratch AS registry
COPY --from=build /out/coral-registry /coral-registry
USER 65532:65532
ENTRYPOINT ["/coral-registry"]

FROM scratch AS operator
COPY --from=build /out/coral-operator /coral-operator
USER 65532:65532
ENTRYPOINT ["/coral-operator"]

# The socket of the runtime and its folders belong to root.
FROM scratch AS warmer
COPY --from=build /out/coral-warmer /coral-warmer
USER 0:0
ENTRYPOINT ["/coral-warmer"]
