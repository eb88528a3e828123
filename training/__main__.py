"""python -m training: pictures, autoencoder, latents, text encoder, UNet, decoder, folder, figures.

And a GPT-2 that completes prompts, in a folder beside.

Every stage goes on where it was stopped; a stage that is finished is skipped.
"""

import argparse
import os
import sys
from pathlib import Path

# glibc maps and zeroes every large tensor anew; kept in the heap, a step is up to five times faster
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "passive",
}


STAGES = ("pictures", "vae", "latents", "text", "diffusion", "decoder", "export", "prompts",
          "measure")


def _start_again_with_allocator():
    """Re-run this command with the allocator's settings, which glibc reads only at the start."""
    if "MALLOC_MMAP_MAX_" not in os.environ:
        command = [sys.executable, "-m", "training", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/training"), help="checkpoints")
    parser.add_argument("--target", type=Path, default=Path("refsd/data/model"), help="result")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--vae-steps", type=int, default=2_600)
    parser.add_argument("--text-steps", type=int, default=3_000)
    parser.add_argument("--steps", type=int, default=10_000, help="of the diffusion")
    parser.add_argument("--decoder-steps", type=int, default=400)
    parser.add_argument("--prompt-steps", type=int, default=4_000, help="of the GPT-2")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--init", type=Path, help="a model folder to go on from")
    parser.add_argument("stages", nargs="*", help=f"{' '.join(STAGES)}; default: all")
    return parser.parse_args()


def main():
    args = _arguments()
    _start_again_with_allocator()
    stages = args.stages or STAGES
    from training import decoder, diffusion, export, latents, measure, pictures, prompts, text, vae
    from training.tokenizer import load_tokenizer, write_tokenizer

    args.folder.mkdir(parents=True, exist_ok=True)
    if args.init:
        export.begin_from(args.init, args.folder)
    if "pictures" in stages:
        pictures.draw_pictures(args.folder, args.pictures)
    if "vae" in stages:
        vae.train(args.folder, steps=args.vae_steps)
    if "latents" in stages and not (args.folder / "latents.npy").exists():
        write_tokenizer(args.folder / "tokenizer")
        tokenizer = load_tokenizer(args.folder / "tokenizer")
        latents.encode_captions(args.folder, tokenizer, args.pictures)
        text.encode_claims(args.folder, args.pictures)
        latents.encode_pictures(args.folder, export.trained_vae(args.folder))
    if "text" in stages and not (args.folder / "text.pt").exists():
        text.train(args.folder, diffusion.build()["text"], steps=args.text_steps)
    if "diffusion" in stages:
        diffusion.train_parallel(args.folder, workers=args.workers, steps=args.steps)
    if "decoder" in stages:
        decoder.train(args.folder, steps=args.decoder_steps)
    if "export" in stages:
        export.export(args.folder, args.target)
    if "prompts" in stages:
        if not (args.folder / "prompts.pt").exists():
            prompts.train(args.folder, steps=args.prompt_steps)
        prompts.export(args.folder, args.target.parent / "gpt2")
    if "measure" in stages:
        print("the check on ray-traced pictures")
        measure.report(measure.check_of_the_check())
        pipe = export.open_model(args.target)
        print(f"the autoencoder: {measure.coder(pipe):.2f} dB")
        for guidance in (3.0, 7.5):
            print(f"the model at guidance {guidance}")
            measure.report(measure.measure(pipe, guidance=guidance))
        measure.completions(args.target.parent / "gpt2")


if __name__ == "__main__":
    main()
