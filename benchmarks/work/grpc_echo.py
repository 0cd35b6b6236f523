"""COUNT IN_FLIGHT: unary calls a second that grpc.aio does between two processes, nothing behind them."""

import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import grpc

METHOD = "/floor.Echo/Call"


class Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(answer) if details.method == METHOD else None


async def answer(request: bytes, _context: object) -> bytes:
    return request[:8]


def server(told: Connection) -> None:
    async def run() -> None:
        echo = grpc.aio.server()
        echo.add_generic_rpc_handlers((Echo(),))
        told.send(echo.add_insecure_port("127.0.0.1:0"))
        await echo.start()
        await echo.wait_for_termination()

    asyncio.run(run())


async def client(port: int, count: int, in_flight: int) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        await call(b"warm")
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await call(b"x" * 400)

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return count / (time.monotonic() - began)


def main() -> None:
    count, in_flight = int(sys.argv[1]), int(sys.argv[2])
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=server, args=(theirs,), daemon=True)
    process.start()
    print(asyncio.run(client(ours.recv(), count, in_flight)))
    process.terminate()


if __name__ == "__main__":
    main()
