"""Have a server classify the digits that training has not seen: python ask.py http://127.0.0.1:8000 digits"""

import json
import sys
import urllib.request

from train import HELD_OUT, load


def main() -> None:
    url, name = sys.argv[1:]
    pixels, labels = (tensor[-HELD_OUT:] for tensor in load())
    given = {"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.tolist()}
    body = {"inputs": [given], "outputs": [{"name": "digit"}]}
    request = urllib.request.Request(f"{url}/v2/models/{name}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        digits = json.load(answer)["outputs"][0]["data"]
    hits = sum(digit == label for digit, label in zip(digits, labels.tolist(), strict=True))
    print(f"{hits} of {len(digits)} held-out digits are right ({hits / len(digits):.1%})")


if __name__ == "__main__":
    main()
