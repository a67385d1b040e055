"""How large the error of each probe may be."""

# Relative errors where the tolerance is not zero, absolute ones where it is.
TOLERANCES = dict(
    ones=0.0,
    linear=1e-4,
    zeros=0.0,
    zeros_layers=0.0,
    random_state=0.0,
    scores=1e-4,
    scores_alone=1e-3,
    single_images=1e-4,
)


def is_fault(name: str, error: float | str) -> bool:
    """Tell whether the error of a probe is too large, or NaN.

    A text says why the probe does not apply, which is no fault.
    """
    return not isinstance(error, str) and not error <= TOLERANCES[name]
