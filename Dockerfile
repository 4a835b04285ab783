# One image for the API, the workers and the migration; see docker-compose.yml.

FROM python:3.13-slim AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src

# Dependencies first, because they change less often than the code.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv --without-pip /opt/bloxserver \
    && python -m venv --without-pip /opt/build \
    && pip --python /opt/bloxserver/bin/python install --only-binary :all: --no-deps --require-hashes -r requirements.lock \
    && pip --python /opt/build/bin/python install --only-binary :all: --no-deps --require-hashes -r requirements-build.lock

COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY bloxserver bloxserver
RUN pip --python /opt/build/bin/python wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/bloxserver/bin/python install --no-deps --no-index /dist/*.whl


FROM python:3.13-slim

RUN groupadd --gid 10001 bloxserver \
    && useradd --uid 10001 --gid bloxserver --no-log-init --no-create-home --home-dir /var/lib/bloxserver \
        --shell /usr/sbin/nologin bloxserver \
    && install --directory --owner bloxserver --group bloxserver /var/lib/bloxserver

COPY --from=builder /opt/bloxserver /opt/bloxserver

# No secrets here: set DATABASE_URL, CLERK_ISSUER and API_KEY_ENCRYPTION_KEY on the container.
ENV PATH=/opt/bloxserver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ENV=production \
    ENABLE_DOCS=false \
    HOST=0.0.0.0 \
    PORT=8000 \
    WORKER_HOST=0.0.0.0 \
    WORKER_PORT=8001

USER 10001:10001
WORKDIR /var/lib/bloxserver
EXPOSE 8000 8001

# For the API. For a worker, check WORKER_PORT instead, as docker-compose.yml does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; api = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); api.request('GET', '/health/ready'); sys.exit(api.getresponse().status != 200)"]

CMD ["bloxserver", "serve"]
