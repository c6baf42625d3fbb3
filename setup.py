"""What pyproject.toml cannot say: a wheel carries folders that a clone has next to the package."""

from setuptools import find_packages, setup

SHIPPED = {
    "atlases": ["*.yaml", "*.md"],
    "envs": ["*"],
    "rules": ["*.smk"],
    "slurm": ["*"],
    "workflow": ["*", "*/*", "*/*/*"],
}
setup(
    packages=[*find_packages(include=["brainlm*"]), *(f"brainlm.share.{n}" for n in SHIPPED)],
    package_dir={f"brainlm.share.{name}": name for name in SHIPPED},
    package_data={
        "brainlm": ["report/templates/*", "report/static/*"],
        **{f"brainlm.share.{name}": patterns for name, patterns in SHIPPED.items()},
    },
)
