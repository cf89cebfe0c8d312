# Night School in a container: a virtual environment from constraints.txt, an unprivileged user, state in one volume.
# The base model is fetched into that volume on the first start (93 MB) and found there ever after.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data ./data
COPY chatbot ./chatbot
COPY trainer ./trainer
# pip's own choice of torch is the CUDA build, of several gigabytes. For another one, its index (README.md).
ARG TORCH_INDEX=
RUN python -m venv /opt/night-school \
    && if [ -n "$TORCH_INDEX" ]; then \
        /opt/night-school/bin/pip install --no-cache-dir "$(grep ^torch== constraints.txt)" --index-url "$TORCH_INDEX"; \
    fi \
    && /opt/night-school/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /home/night night \
    && mkdir /var/lib/night-school \
    && chown night:night /var/lib/night-school
COPY --from=build /opt/night-school /opt/night-school
ENV PATH=/opt/night-school/bin:$PATH \
    NIGHTSCHOOL_HOME=/var/lib/night-school \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER night
WORKDIR /home/night
VOLUME /var/lib/night-school
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["chatbot"]
CMD ["serve", "--host", "0.0.0.0"]
