"""Hatchling's hook: compile the engine for a wheel or an editable install, and tag the wheel for it."""

from __future__ import annotations

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "build_tools"))
import engine
import target as targets


class EngineBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            options = engine.Options.from_environment()
            if version == "editable":
                # The wheel of an editable install only points at the source package.
                engine.build_in_place(options)
                return
            library = engine.build(options)
        except engine.BuildError as error:
            self.app.abort(f"zloop: {error}")
        build_data["pure_python"] = False
        build_data["force_include"][str(library.path)] = f"zloop/{library.name}"
        if options.target:
            tag = targets.interpreter_tag()
            build_data["tag"] = f"cp{tag.rstrip('td')}-cp{tag}-{library.target.platform_tag}"
        else:
            build_data["infer_tag"] = True
