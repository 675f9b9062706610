"""The gateway shows the mesh to HTTP clients, and to NATS clients that want to wait for an answer.

In:   HTTP, `call.<workflow>` (core NATS, service `clawdbot-gateway`), `live.<part>.<run>`.
Out:  `submit.<workflow>` (COMMANDS, acknowledged), blobs, definitions.

Guarantees: it keeps nothing that matters, so any number of replicas may run behind any balancer;
a submission is stored by JetStream before it is answered; what a client waits for is read from the
log, and `live` only says when to look. It refuses what cannot work before it is stored, and names
the field.
"""
