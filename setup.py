"""What pyproject.toml cannot say: a wheel carries folders that a clone has next to the package."""

from setuptools import find_packages, setup

SHIPPED = {
    "atlases": ["*.yaml", "*.md"],
    "envs": ["*"],
    "rules": ["*.smk"],
    "slurm": ["*"],
    "workflow": ["*", "*/*", "*/*/*"],
}
# A file in a package of others, which has no __init__: Brainmarks finds its models by their place.
PLUGIN = "brainmarks.models"
SHARED = [f"brainlm.share.{name}" for name in SHIPPED]
setup(
    packages=[*find_packages(include=["brainlm*"]), *SHARED, PLUGIN],
    package_dir={
        PLUGIN: "plugins/brainmarks/models",
        **{f"brainlm.share.{name}": name for name in SHIPPED},
    },
    package_data={
        "brainlm": ["report/templates/*", "report/static/*", "preprocess/normalise/*.json"],
        **{f"brainlm.share.{name}": patterns for name, patterns in SHIPPED.items()},
    },
)
