"""`refsd samplers`: the samplers, their names in other tools, and what each takes."""

import argparse
from typing import Any

from refsd import schedulers
from refsd.cli.arguments import Parser
from refsd.cli.report import result, result_json
from refsd.cli.sampler_names import SAMPLERS, flow_class, scheduler_of, schedules_of

ABOUT = """\
List the samplers of refsd: the class and options of each in diffusers, its name in
A1111, ComfyUI and stable-diffusion.cpp, how often it calls the model in n steps, its
order of convergence, whether it draws noise in its steps, whether models of flow
matching take it too, and which sigmas it takes besides evenly spaced ones:
`--sampler euler_karras`, or `--schedule karras`. Then what these tools have and refsd
has not, and why.

The same name is the same method. Its picture is that of diffusers: A1111 leaves out one
sigma with DPM2, and draws the noise of all SDEs from a Brownian path; here dpm++sde alone."""
# Classes that are not for drawing a picture with any model.
ONLY_CLASSES = {
    "DDIMInverseScheduler": "from a picture up to the noise it comes from; from Python",
    "EDMEulerScheduler": "for models trained with EDM's preconditioning, whose configs name it",
    "EDMDPMSolverMultistepScheduler": "likewise",
    "FlowMatchEulerDiscreteScheduler": "euler, with models of flow matching",
    "FlowMatchHeunDiscreteScheduler": "heun, with models of flow matching",
}
NOT_IN_DIFFUSERS = "diffusers has none, so there is nothing to hold it to"
# Names in A1111 1.10, ComfyUI and stable-diffusion.cpp of August 2026 -> why refsd has them not.
ELSEWHERE = {
    "dpm++2m_sde_bt": "diffusers' DPM++ 2M SDE has no Brownian path; dpm++sde has one",
    "DPM++ 3M SDE, dpmpp_3m_sde": "diffusers' third order has another sign (docs/schedules.md); "
                                  "solver_order 3 in Python gives that",
    "DPM++ 2S a, dpmpp_2s_ancestral, dpm++2s_a": f"{NOT_IN_DIFFUSERS}; dpm++2s is without noise",
    "DPM fast, DPM adaptive, dpm_fast, dpm_adaptive": NOT_IN_DIFFUSERS,
    "ddim_trailing": "ddim with timestep_spacing trailing, in Python; ddim has the model's",
    "Restart": NOT_IN_DIFFUSERS,
    "DDIM CFG++, euler_cfg_pp, euler_a_cfg_pp and others in _cfg_pp": NOT_IN_DIFFUSERS,
    "dpm++2mv2, heunpp2": NOT_IN_DIFFUSERS,
    "ipndm, ipndm_v": "diffusers' IPNDMScheduler knows no betas, so not Stable Diffusion's either",
    "res_multistep, res_2s, er_sde, euler_ge, gradient_estimation": NOT_IN_DIFFUSERS,
    "seeds_2, seeds_3": NOT_IN_DIFFUSERS,
    "sa_solver, sa_solver_pece": "diffusers' SASolverScheduler has not been rebuilt here",
    "UniPC of A1111, uni_pc": "unipc_bh1 is nearer to these; unipc is diffusers' default",
}
SIGMAS_ELSEWHERE = {
    "Uniform, Normal, discrete": "evenly spaced timesteps, as the model's timestep_spacing says",
    "SGM Uniform, Simple, DDIM": "the nearest is timestep_spacing trailing or leading, in Python",
    "Align Your Steps, GITS": "timesteps of the caller's own, in Python: pipe(timesteps=...)",
    "Polyexponential, KL Optimal, smoothstep, bong_tangent": NOT_IN_DIFFUSERS,
}
COLUMNS = ("name", "diffusers", "a1111", "comfyui", "sd_cpp", "calls", "order", "noise", "flow",
           "sigmas")


def parser() -> Parser:
    """The options of samplers: none of its own."""
    return Parser("refsd samplers [options]", ABOUT).answering()


def run(options: argparse.Namespace) -> int:
    """Print the tables."""
    rows = [describe(name) for name in SAMPLERS]
    if options.json:
        result_json({"samplers": rows, "classes": ONLY_CLASSES, "not_here": ELSEWHERE,
                     "sigmas_not_here": SIGMAS_ELSEWHERE})
        return 0
    table = [COLUMNS, *([_cell(row[column]) for column in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for line in table:
        result("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for title, notes in (("classes for Python alone", ONLY_CLASSES),
                         ("elsewhere, and not here", ELSEWHERE),
                         ("sigmas elsewhere, and not here", SIGMAS_ELSEWHERE)):
        result(f"\n{title}")
        for names, why in notes.items():
            result(f"  {names}: {why}")
    return 0


def describe(name: str) -> dict[str, Any]:
    """A sampler's row: what it is called, and what its class says of itself."""
    sampler, (kind, options) = SAMPLERS[name], scheduler_of(name)
    set_apart = ", ".join(f"{key}={value}" for key, value in sampler.options.items()
                          if schedulers.SCHEDULERS[kind].DEFAULTS[key] != value)
    return {"name": name, "diffusers": f"{kind}({set_apart})", "class": kind, "options": options,
            "a1111": sampler.label if sampler.in_a1111 else "", "comfyui": sampler.comfyui,
            "sd_cpp": sampler.sd_cpp,
            "calls": calls_of(kind, sampler.options), "order": sampler.order,
            "noise": sampler.noise, "flow": bool(flow_class(name)), "sigmas": schedules_of(name)}


def calls_of(kind: str, options: dict[str, Any]) -> str:
    """How many calls of the model n steps take, found from two runs of the class."""
    counts = []
    for steps in (10, 11):
        scheduler = schedulers.SCHEDULERS[kind](**options)
        scheduler.set_timesteps(steps)
        counts.append(len(scheduler.timesteps))
    each = counts[1] - counts[0]
    more = counts[0] - 10 * each
    return ("n" if each == 1 else f"{each} n") + (f" {'+-'[more < 0]} {abs(more)}" if more else "")


def _cell(value):
    if isinstance(value, bool):
        return "yes" if value else ""
    return " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
