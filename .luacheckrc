-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
std = "luajit+ngx_lua"
max_line_length = 130
files["tests/lua"] = { std = "+busted" }
exclude_files = { ".venv", "collections" }
