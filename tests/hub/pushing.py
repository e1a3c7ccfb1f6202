"""What a push sends, and the requests that it consists of."""

REPO = "alice/model"
PUSHED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
STEPS = {
    "create": "POST /api/repos/create",
    "branch": "POST /api/models/.*/branch/",
    "info": "GET /api/models/alice/[^/]*",
    "card": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/lfs/objects/batch",
    "file": "PUT /lfs/",
    "commit": "POST .*/commit/",
}
