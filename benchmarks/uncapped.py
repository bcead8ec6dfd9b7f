"""What torchdiffeq's dopri5 does on a sharpening network when nothing tells it λ₁.

500 CIFAR-10 images, 3072-100-100-10 tanh, squared error, float32, flow to t = 8. Prints where each setting
ends; the error is that of θ against rk4 (alpha = 1), over the distance travelled.

    python benchmarks/uncapped.py --data DIR
"""

import argparse
import warnings

import numpy as np
from common import cifar, fc_tanh

import gradflow


def main() -> None:
    """Run the reference and every setting, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--t-max", type=float, default=8.0)
    parser.add_argument("--max-steps", type=int, default=600)
    args = parser.parse_args()
    warnings.simplefilter("ignore", gradflow.IntegrationWarning)
    loss = cifar(lambda: fc_tanh(100), 500, "mse", args.data)
    theta = loss.parameters()
    shared = {"t_max": args.t_max, "save_every": args.t_max}
    reference = gradflow.integrate(loss, theta, method="rk4", **shared)
    travelled = np.linalg.norm(reference.params - theta.numpy())
    print(
        f"rk4, alpha 1: {int(reference.n_gradients[-1])} gradients, loss {float(reference.train_loss[-1]):.4f}"
    )
    print(
        f"{'rtol':>7}{'atol':>7}{'cap':>6}{'gradients':>11}{'H·v':>6}{'ended at t':>12}{'loss':>10}{'error':>9}"
    )
    loose = ((1e-2, 1e-4), (1e-3, 1e-4))
    for cap, settings in ((True, (*loose, (1e-4, 1e-6))), (False, loose)):
        for rtol, atol in settings:
            run = gradflow.integrate(
                loss,
                theta,
                method="torchdiffeq:dopri5",
                rtol=rtol,
                atol=atol,
                cap=cap,
                max_steps=args.max_steps,
                **shared,
            )
            end = run.isel(time=-1)
            error = np.linalg.norm(run.params - reference.params) / travelled
            print(
                f"{rtol:7.0e}{atol:7.0e}{cap!s:>6}{int(end.n_gradients):11d}{int(end.n_hvps):6d}{float(end.time):12.3g}"
                f"{float(end.train_loss):10.4g}{error:9.2g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
