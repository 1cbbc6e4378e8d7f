from configs import defaults
def get_config(variant=""):
    c = defaults.pretraining()
    if variant not in ("", "tiny"): raise ValueError(f"unknown variant {variant!r}: this config has `tiny`")
    if variant=="tiny": c.batch_size=4
    return c
