"""What a Tiltfile may call, and how: facts of Tilt, so that a misspelt keyword is found without Tilt.

From tilt-dev/tilt at 2fa1737 (2026-08): the names and parameters that its Go code unpacks (internal/tiltfile/**/*.go), which
differ in places from those of its documentation (internal/tiltfile/api/__init__.py: `kustomize(pathToDir)`); and from
tilt-dev/tilt-extensions at a8701c0 (2026-07): restart_process/Tiltfile. Behind the bar a parameter is optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BUILD = "match_in_env_vars ignore"
_DEFINE = "name | args usage"

_PARAMETERS: Mapping[str, str] = {
    "allow_k8s_contexts": "contexts",
    "analytics_settings": "enable",
    "blob": "input",
    "ci_settings": "| k8s_grace_period timeout readiness_timeout",
    "config.clear_enabled_resources": "",
    "config.define_bool": _DEFINE,
    "config.define_string": _DEFINE,
    "config.define_string_list": _DEFINE,
    "config.parse": "",
    "config.set_enabled_resources": "resources",
    "custom_build": f"ref command deps | tag disable_push skips_local_docker live_update {_BUILD} entrypoint container_args "
    "command_bat_val outputs_image_ref_to command_bat image_deps env dir",
    "decode_json": "json",
    "decode_yaml": "yaml",
    "decode_yaml_stream": "yaml",
    "default_registry": "host | host_from_cluster single_name",
    "docker_build": f"ref context | build_args dockerfile dockerfile_contents cache live_update {_BUILD} only entrypoint "
    "container_args target ssh secret network extra_tag cache_from pull platform extra_hosts",
    "docker_prune_settings": "| disable max_age_mins num_builds interval_hrs keep_recent",
    "encode_json": "obj",
    "encode_yaml": "obj",
    "encode_yaml_stream": "objs",
    "exec_action": "command",
    "fall_back_on": "paths",
    "filter_yaml": "yaml | labels name namespace kind api_version",
    "http_get_action": "port | host scheme path",
    "initial_sync": "",
    "k8s_context": "",
    "k8s_kind": "kind | image_json_path api_version image_object pod_readiness",
    "k8s_namespace": "",
    "k8s_resource": "| workload new_name port_forwards extra_pod_selectors trigger_mode resource_deps objects auto_init "
    "pod_readiness links labels discovery_strategy",
    "k8s_yaml": "yaml | allow_duplicates",
    "kustomize": "paths | kustomize_bin flags",
    "link": "url | name",
    "listdir": "dir | recursive",
    "local": "command | quiet command_bat echo_off env dir stdin",
    "local_resource": "name | cmd deps trigger_mode resource_deps ignore auto_init serve_cmd cmd_bat serve_cmd_bat "
    "allow_parallel links labels env serve_env readiness_probe dir serve_dir",
    "os.getcwd": "",
    "os.getenv": "key | default",
    "port_forward": "local_port | container_port name link_path host",
    "probe": "| initial_delay_secs timeout_secs period_secs success_threshold failure_threshold exec http_get tcp_socket",
    "read_file": "paths | default",
    "read_json": "paths | default",
    "read_yaml": "paths | default",
    "read_yaml_stream": "paths | default",
    "run": "cmd | trigger echo_off",
    "secret_settings": "disable_scrub",
    "sync": "local_path remote_path",
    "tcp_socket_action": "port | host",
    "trigger_mode": "trigger_mode",
    "update_settings": "| max_parallel_updates k8s_upsert_timeout_secs suppress_unused_image_warnings k8s_server_side_apply",
    "version_settings": "| check_updates constraint",
    "warn": "msg",
    "watch_file": "paths",
    "watch_settings": "| ignore",
}

VALUES: Mapping[str, str] = {"TRIGGER_MODE_AUTO": "auto", "TRIGGER_MODE_MANUAL": "manual"}

# By extension; what is not a parameter of its own goes on to docker_build or custom_build.
_EXTENSIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "ext://restart_process": {
        "docker_build_with_restart": (
            "ref context entrypoint live_update | base_suffix restart_file trigger exit_policy",
            "docker_build",
        ),
        "custom_build_with_restart": (
            "ref command deps entrypoint live_update | base_suffix restart_file trigger exit_policy",
            "custom_build",
        ),
    }
}


class WrongCall(Exception):
    """Tilt would refuse this call, or find nothing under its name."""


def names() -> tuple[str, ...]:
    """Every builtin that is known here."""
    return tuple(_PARAMETERS)


def loaded(extension: str, name: str) -> str:
    """The name under which `bind` knows what a `load` imports. Raises WrongCall when the extension has none such."""
    if name not in _EXTENSIONS.get(extension, {}):
        raise WrongCall(f"load: {extension} has no {name}")
    return f"{extension} {name}"


def bind(name: str, positional: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their parameters. Raises WrongCall as Tilt would."""
    extension, _, short = name.rpartition(" ")
    own, further = _EXTENSIONS[extension][short] if extension else (_PARAMETERS[name], None)
    required, optional = _split(own)
    order = [*required, *optional]
    if len(positional) > len(order):
        raise WrongCall(f"{short}: {len(positional)} arguments, {len(order)} at most")
    bound = dict(zip(order, positional, strict=False))
    # The wrapper gives the builder below its own reference, context and steps.
    known = {*order, *((set().union(*_split(_PARAMETERS[further]))) if further else ())}
    for keyword, value in keywords.items():
        if keyword not in known:
            raise WrongCall(f"{short}: there is no parameter {keyword}")
        if keyword in bound:
            raise WrongCall(f"{short}: {keyword} is given twice")
        bound[keyword] = value
    missing = [one for one in required if one not in bound]
    if missing:
        raise WrongCall(f"{short}: {', '.join(missing)} is missing")
    return bound


def _split(parameters: str) -> tuple[list[str], list[str]]:
    required, _, optional = parameters.partition("|")
    return required.split(), optional.split()
