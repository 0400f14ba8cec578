FROM python:3.13-slim AS build

ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/opt/bot \
    UV_PYTHON_DOWNLOADS=never

WORKDIR /src
COPY .ci/uv.txt .ci/
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --no-cache-dir --only-binary :all: --require-hashes -r .ci/uv.txt

# The dependencies change less often than the bot, so they are a layer of their own.
COPY pyproject.toml uv.lock ./
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra postgres --no-install-project

COPY README.md ./
COPY bot bot
COPY migrations migrations
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra postgres --no-editable


FROM python:3.13-slim

ENV PATH=/opt/bot/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=3000

COPY --from=build /opt/bot /opt/bot

# The default database, sqlite:///cancels.db, lies in the working directory: the only place that the bot writes to.
RUN mkdir /data && chown 10001:10001 /data
VOLUME ["/data"]
WORKDIR /data
USER 10001:10001
EXPOSE 3000

# The environment may name a proxy, which urllib would ask for an address on loopback too.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python3", "-c", "\
import os, urllib.request as r; \
r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=3)"]

ENTRYPOINT ["bot"]
CMD ["run"]
