"""Made by scripts/protoc.sh from proto/v1; do not edit."""
