import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

settings = ConfigParser(delimiters=["="])
settings.read(HERE / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
of_version = f"{cfg['git_url']}/{{}}/v{cfg['version']}/"


def for_index(readme):
    "README.md as a package index shows it: links lead to the files of this version."
    to_raw, to_page = of_version.format("raw"), of_version.format("blob")
    readme = re.sub(r"(!\[[^\]]*\]\()(?!\w+:|#)", rf"\g<1>{to_raw}", readme)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!\w+:|#)", rf"\g<1>{to_page}", readme)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=for_index((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: {v}" for v in cfg["pythons"].split()),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Source": cfg["git_url"],
        "Changelog": of_version.format("blob") + "CHANGELOG.md",
        "Issues": cfg["git_url"] + "/issues",
    },
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={
        cfg["lib_path"]: ["py.typed", "data/*.csv", "data/*.png", "data/*.safetensors"]
    },
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split() + cfg["cluster_requirements"].split(),
        "cluster": cfg["cluster_requirements"].split(),
        "benchmark": cfg["benchmark_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
