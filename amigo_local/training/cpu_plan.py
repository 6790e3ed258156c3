"""Fits training to a machine without a card: one lever, the micro-batch."""

from __future__ import annotations

from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import Lever, MemoryPlan, Part
from amigo_local.training.cpu_memory import TOKENS_PER_MICRO_BATCH, ram_parts, recomputes, tokens_per_second
from amigo_local.training.fit import Fit, batching, budget, divisors, optimizer_of, total
from amigo_local.training.memory_formula import ASSUMED, Job
from amigo_local.training.memory_parts import disk_parts


def processor_plan(job: Job, machine: Machine) -> Fit:
    """One lever, the micro-batch: the base lies in memory as it is."""
    ram = budget(machine, "RAM")
    settings, shape = job.settings, job.shape

    # What a probe found, against the same formula.
    excess = job.calibration.vram_factor / ASSUMED.vram_factor - 1

    def parts(micro: int) -> tuple[Part, ...]:
        predicted = ram_parts(shape, settings, job.length, micro)
        return (*predicted, Part("measured beyond", int(excess * total(predicted)))) if excess else predicted

    micro = settings.micro_batch or 1
    if settings.micro_batch is None:
        for divisor in divisors(settings.effective_batch):
            enough = divisor * job.length <= TOKENS_PER_MICRO_BATCH
            if enough and total(parts(divisor)) <= ram:
                micro = divisor
    optimizer = optimizer_of(settings, on_card=False)
    rate = tokens_per_second(shape, settings, machine.cpu_count)
    rate *= job.calibration.flops / ASSUMED.flops
    step_tokens = settings.effective_batch * job.length * (2 if settings.method == "dpo" else 1)
    other = 2 * micro if micro < settings.effective_batch else max(1, micro // 2)
    saved = total(parts(other)) - total(parts(micro))
    lever = Lever(
        name="train.micro_batch",
        chosen=str(micro),
        other=str(other),
        vram_saved_bytes=0,
        ram_saved_bytes=saved,
        seconds_saved=0.0,
    )
    plan = MemoryPlan(
        device="cpu",
        batching=batching(job, micro),
        max_length_tokens=job.length,
        optimizer=optimizer,
        recompute=recomputes(shape.parameters),
        resident_layers=shape.layers,
        ram=parts(micro),
        disk=disk_parts(job, optimizer),
        ram_budget_bytes=ram,
        disk_budget_bytes=budget(machine, "disk"),
        levers=(lever,) if other != micro else (),
        step_seconds=step_tokens / rate,
        tokens_per_second=rate,
    )
    if plan.peak_ram_bytes > ram:
        return Fit(plan, "RAM")
    return Fit(plan, "disk" if plan.disk_bytes > machine.disk_free_bytes else None)
