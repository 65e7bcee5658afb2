"""Day or night? A plugin from plain generated stubs, explained in docs/reference/raw-plugin.md."""
import json, os, queue, signal, sys, threading, time
from datetime import datetime
from pathlib import Path
import grpc
from coreruntime.v1 import event_bus_pb2 as bus, event_bus_pb2_grpc as bus_rpc
from coreruntime.v1 import plugin_channel_pb2 as wire, plugin_channel_pb2_grpc as wire_rpc
from coreruntime.v1.service_registry_pb2 import ServiceDescription

TOKEN = os.environ.get("CORE_TOKEN") or Path(os.environ["CORE_TOKEN_FILE"]).read_text().strip()
CREDENTIAL = [("authorization", f"Bearer {TOKEN}")]
SERVICE = ServiceDescription(name="sunlight.now", summary="Day or night, now or at an hour.")
LOCALHOST = [("grpc.default_authority", "localhost")]  # not the path of a unix socket

def sunlight(hour=None):
    hour = datetime.now().hour if hour is None else hour
    if type(hour) is not int or not 0 <= hour <= 23:
        raise ValueError(f"hour: {hour!r} is not a whole number from 0 to 23")
    return {"hour": hour, "period": "day" if 7 <= hour < 19 else "night"}

def answer(call):  # there is one service only, so `call.service` needs no look
    reply = wire.CallResponse(call_id=call.call_id)
    try:  # named arguments, a JSON object, are all that this service takes
        reply.result = json.dumps(sunlight(**json.loads(call.arguments or b"{}"))).encode()
    except (TypeError, ValueError) as wrong:
        reply.error.code, reply.error.message = 3, str(wrong)  # INVALID_ARGUMENT
    return wire.PluginMessage(call_response=reply)

def tell_changes(event_bus):
    told = None
    while True:
        now = sunlight()
        try:
            if now["period"] != told:
                event = bus.NewEvent(topic="sunlight.changed", data=json.dumps(now).encode())
                event_bus.Publish(bus.EventBusPublishRequest(event=event), 10, CREDENTIAL)
                told = now["period"]
        except grpc.RpcError as error:
            print("sunlight.changed was not published:", error.details(), file=sys.stderr)
        time.sleep(5)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
to_core = queue.SimpleQueue()  # holds no more than the calls that the core lets in at once
to_core.put(wire.PluginMessage(hello=wire.Hello(services=[SERVICE], ready=True)))
core, ca = os.environ["CORE_ADDR"], os.environ.get("CORE_CA_FILE")  # TLS exactly when there is a CA
trust = ca and grpc.ssl_channel_credentials(Path(ca).read_bytes())
with grpc.secure_channel(core, trust) if ca else grpc.insecure_channel(core, LOCALHOST) as connection:
    channel = wire_rpc.PluginChannelStub(connection)
    try:
        for message in channel.Open(iter(to_core.get, None), metadata=CREDENTIAL):
            kind = message.WhichOneof("message")  # a kind that is not known here is ignored
            if kind == "welcome":
                event_bus = bus_rpc.EventBusStub(connection)
                threading.Thread(target=tell_changes, args=[event_bus], daemon=True).start()
            elif kind == "call_request":
                to_core.put(answer(message.call_request))
            elif kind == "run_hook" and message.run_hook.hook == wire.RunHook.HOOK_UNLOAD:
                break
    except grpc.RpcError as error:  # whoever started this process starts it again
        sys.exit(f"the channel ended: {error.details()}")
