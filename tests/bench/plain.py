"""The job as one writes it in an afternoon: check the signature, put it on Kafka, say yes."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import jwt
import uvicorn
from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, HTTPException, Request

PORT, SERVERS, TOPIC, SECRET = sys.argv[1:]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    producer = AIOKafkaProducer(bootstrap_servers=SERVERS, acks="all", enable_idempotence=True)
    await producer.start()
    app.state.producer = producer
    try:
        yield
    finally:
        await producer.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks/{connection}", status_code=204)
async def hook(connection: str, request: Request) -> None:
    body = await request.body()
    try:
        event = jwt.decode(body, SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None
    await app.state.producer.send_and_wait(
        TOPIC,
        key=f"{connection}/{event['call_id']}".encode(),
        value=json.dumps(event).encode(),
    )


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(PORT),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
    )
