// The examples. `needs` names a package that must be installed.

const EXAMPLES = [
  {
    title: "A result and a line of output",
    script: `def main():
    print("Hello from a fresh process")
    return {"answer": 40 + 2}
`,
  },
  {
    title: "An input",
    script: `import statistics

def main(numbers):
    print("got", len(numbers), "numbers")
    return {
        "mean": statistics.mean(numbers),
        "median": statistics.median(numbers),
    }
`,
    input: "[3, 1, 4, 1, 5, 9, 2, 6]",
  },
  {
    title: "pandas, already in memory",
    needs: "pandas",
    script: `import pandas as pd

def main():
    sales = pd.DataFrame({
        "city": ["Oslo", "Rome", "Oslo", "Lima"],
        "sold": [3, 5, 4, 8],
    })
    print(sales)
    return sales.groupby("city")["sold"].sum()
`,
  },
  {
    title: "numpy: a fitted line",
    needs: "numpy",
    script: `import numpy as np

def main():
    x = np.arange(10)
    y = 2 * x + 1 + np.random.default_rng().normal(0, 0.1, 10)
    slope, offset = np.polyfit(x, y, 1)
    return {"slope": slope.round(2), "offset": offset.round(2)}
`,
  },
  {
    title: "Files in, files out",
    script: `import csv

def main():
    with open("cities.csv", newline="") as file:
        cities = list(csv.DictReader(file))
    with open("outputs/names.txt", "w") as file:
        file.writelines(city["name"] + "\\n" for city in cities)
    return cities
`,
    files: { "cities.csv": "name,people\nOslo,717710\nLima,10092000\n" },
  },
  {
    title: "matplotlib: a plot",
    needs: "matplotlib",
    script: `import matplotlib.pyplot as plt
import numpy as np

def main():
    x = np.linspace(0, 2 * np.pi, 200)
    plt.figure(figsize=(6, 3))
    plt.plot(x, np.sin(x), label="sin")
    plt.plot(x, np.cos(x), label="cos")
    plt.legend()
    plt.show()
`,
  },
  {
    title: "An error, with its line",
    script: `def share(total, people):
    return total / people

def main():
    print("dividing")
    return share(10, 0)
`,
  },
  {
    title: "What the sandbox refuses",
    script: `import os, socket

def attempt(act):
    try:
        return repr(act())
    except OSError as error:
        return f"refused: {error}"

def main():
    return {
        "the network": attempt(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
        "a file of the host": attempt(lambda: open("/etc/hosts").read()),
        "other processes": attempt(lambda: os.listdir(f"/proc/{os.getppid()}")),
        "writing elsewhere": attempt(lambda: open("/usr/lib/mine", "w")),
    }
`,
  },
];
