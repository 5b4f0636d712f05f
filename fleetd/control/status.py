"""One picture of the fleet as plain JSON values: what the API gives and every view renders. Reads, changes nothing."""

from collections import Counter
from typing import Any

from fleetd import __version__
from fleetd.control.loop import Controller
from fleetd.core.learn import boot_estimate, mean_service
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory, Node, Rollout
from fleetd.core.model import Phase, Plan, Policy, Seconds


def status(controller: Controller, recent: int = 12) -> dict[str, Any]:
    """Return the running fleet: queues, apps, pools, nodes, money, and the last `recent` events. Times in seconds."""
    picture = picture_of(controller.policy, controller.memory, controller.plan, controller.clock())
    return {
        "version": __version__,
        "uptime_s": round(controller.clock() - controller.started_at, 1),
        **picture,
        "dead": controller.count_dead(),
        "events": [{"at": e.at, "kind": e.kind, "text": e.text} for e in controller.events(recent)],
    }


def picture_of(policy: Policy, memory: Memory, plan: Plan, now: Seconds) -> dict[str, Any]:
    """Return what memory and plan say, by the policy's names."""
    spend = memory.spend
    return {
        "fleet": policy.fleet,
        "epoch": memory.epoch,
        "ending": memory.ending,
        "paused": memory.paused,
        "currency": policy.currency,
        "spent": {"hour": sum(money for _, money in spend.minutes), "month": spend.month_total},
        "queues": {name: _queue(policy, memory, name, now) for name in policy.queues},
        "pools": {name: _pool(policy, memory, name, now) for name in policy.pools},
        "nodes": [
            _node(node, now) for node in sorted(memory.nodes.values(), key=lambda n: (n.pool, n.launched_at, n.id))
        ],
        "releases": {name: _release(memory, name) for name, app in policy.apps.items() if not app.exec},
        "why": dict(plan.sentences),
    }


def _release(memory: Memory, app: str) -> dict[str, Any]:
    rollout = memory.rollouts.get(app, Rollout())
    running = Counter(node.digest for node in memory.nodes.values() if node.app == app and node.digest)
    return {
        "active": rollout.active or None,
        "previous": rollout.previous or None,
        "candidate": rollout.candidate or None,
        "stage": ("canary" if rollout.canary else "waves") if rollout.candidate else None,
        "share": rollout.share,
        "nodes": dict(running),
        "refused": dict(rollout.refused),
    }


def _queue(policy: Policy, memory: Memory, name: str, now: Seconds) -> dict[str, Any]:
    queue, rule = memory.queues.get(name), policy.queues[name]
    if queue is None:
        return {"app": rule.app, "blind": "not read yet", "waiting": None, "running": None}
    read = queue.read_at is not None
    return {
        "app": rule.app,
        "waiting": queue.waiting if read else None,
        "running": queue.running if read else None,
        "rate": queue.rate.per_s,
        "service_s": mean_service(queue, rule),
        "service_measured": queue.life.jobs >= 1.0,
        "need": queue.need,
        "objective_s": rule.objective.wait_s,
        "blind": queue.why_blind if queue.blind_at is not None else "",
        "blind_s": now - queue.blind_at if queue.blind_at is not None else 0.0,
    }


def _pool(policy: Policy, memory: Memory, name: str, now: Seconds) -> dict[str, Any]:
    pool, known = policy.pools[name], memory.pools.get(name)
    nodes = [node for node in memory.nodes.values() if node.pool == name]
    phases = [node.phase for node in nodes]
    return {
        "kind": pool.kind,
        "apps": list(pool.apps),
        "slots": pool.slots,
        "min": pool.min_nodes,
        "max": pool.max_nodes,
        "price_per_h": pool.price_per_h,
        "ready": phases.count(Phase.READY),
        "coming": sum(phase in COMING for phase in phases),
        "draining": phases.count(Phase.DRAINING) + phases.count(Phase.STOPPING),
        "lost": phases.count(Phase.LOST) + phases.count(Phase.FAILED),
        "quarantined": phases.count(Phase.QUARANTINED),
        "busy": sum(node.busy for node in nodes),
        "boot_s": boot_estimate(known) if known and known.boots_s else None,
        "breaker_s": max(0.0, known.open_until - now) if known else 0.0,
        "breaker_why": known.why_open if known else "",
        "drained": bool(known and known.drained_until > now),
        "blind": known.why_blind if known and known.blind_at is not None else "",
        "blind_s": now - known.blind_at if known and known.blind_at is not None else 0.0,
        "held_s": max(0.0, known.held_until - now) if known else 0.0,
        "act": pool.act,
        "drain": "by signal" if any(policy.apps[app].busy_by == "by signal" for app in pool.apps) else "",
    }


def _node(node: Node, now: Seconds) -> dict[str, Any]:
    return {
        "id": node.id,
        "pool": node.pool,
        "app": node.app,
        "phase": str(node.phase),
        "phase_s": round(now - node.since, 1),
        "age_s": round(now - node.launched_at, 1),
        "slots": node.slots,
        "busy": node.busy,
        "idle_s": round(now - node.idle_at, 1) if node.idle_at is not None else 0.0,
        "lease_s": round(now - node.heard_at, 1) if node.heard_at is not None else None,
        "digest": node.digest[:12],
        "reason": node.reason,
    }
