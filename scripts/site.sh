#!/bin/sh
# Builds the documents and the API reference as one site, site/index.html, without a download beyond the packages.
# Warnings and dead local links fail the build; addresses of other sites are not checked. Further words go to
# `mkdocs build`. The pages open from the disk; their search needs a server: python -m http.server -d site
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict "$@"
