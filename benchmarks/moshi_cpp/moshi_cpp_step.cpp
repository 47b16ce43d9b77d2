// Times the steps of moshi.cpp (https://github.com/Codes4Fun/moshi.cpp) in the shape of Kyutai's
// STT 1B, on the CPU, and prints one line of JSON like the programs that measuring.py runs.
// How to build: see CMakeLists.txt.
//
//     moshi-cpp-step --folder FOLDER --recording WAV --precision q8_0|q4_0|q4_k|bf16
//         --lanes 1 --active 1 --warmup N --steps N [--threads N]
//
// FOLDER has the checkpoint that cpu_streams.py writes, and gets a GGUF file of each model the
// first time, as moshi.cpp's own tools cache them: quantizing takes long. Threads: one per
// processor unless given (ggml's default of four is meant for larger machines).
//
// A process of moshi.cpp has one stream. Its attention is over the whole ring, masked, from the
// first step on, so times hold for a full context.

#include <moshi/moshi.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Options = std::map<std::string, std::string>;

constexpr int CODEBOOKS = 32;
constexpr float GREATEST_SAMPLE = 32768.0f;
constexpr long BYTES_PER_KIB = 1024;
const std::string UNQUANTIZED = "bf16";

double ms_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

Options read_options(int argc, char ** argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        options[argv[i]] = argv[i + 1];
    }
    for (const char * name : {"--folder", "--recording", "--precision", "--lanes", "--active",
                              "--warmup", "--steps"}) {
        if (!options.contains(name)) {
            throw std::runtime_error(std::string(name) + " is missing");
        }
    }
    for (const char * name : {"--lanes", "--active"}) {
        if (options.at(name) != "1") {
            throw std::runtime_error(std::string(name) + ": moshi.cpp has one stream");
        }
    }
    return options;
}

// The model that cpu_streams.py writes; what is not set here is a depformer's or a voice's.
moshi_config_t stt_1b() {
    moshi_config_t config{};
    config.card = 2048;
    config.n_q = CODEBOOKS;
    config.dep_q = 0;
    config.delays.assign(1 + CODEBOOKS, 0);
    config.dim = 2048;
    config.text_card = 8000;
    config.existing_text_padding_id = 3;
    config.num_heads = 16;
    config.num_layers = 16;
    config.hidden_scale = 4.125f;
    config.causal = true;
    config.context = 750;
    config.max_period = 100000;
    config.gating = "silu";
    config.norm = "rms_norm_f32";
    config.positional_embedding = "rope";
    config.depformer_multi_linear = true;
    config.extra_heads_num_heads = 4;
    return config;
}

// Samples of a WAV file of 16-bit mono.
std::vector<float> read_recording(const fs::path & path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    constexpr size_t RIFF_HEADER = 12;
    constexpr size_t CHUNK_HEADER = 8;
    size_t at = RIFF_HEADER;
    while (at + CHUNK_HEADER <= bytes.size()) {
        uint32_t size = 0;
        std::memcpy(&size, &bytes[at + 4], sizeof size);
        if (bytes.compare(at, 4, "data") == 0) {
            const std::string data = bytes.substr(at + CHUNK_HEADER, size);
            std::vector<int16_t> samples(data.size() / sizeof(int16_t));
            std::memcpy(samples.data(), data.data(), samples.size() * sizeof(int16_t));
            std::vector<float> pcm;
            for (const int16_t sample : samples) {
                pcm.push_back(sample / GREATEST_SAMPLE);
            }
            return pcm;
        }
        at += CHUNK_HEADER + size + size % 2;
    }
    throw std::runtime_error(path.string() + ": no samples");
}

// Resident memory now and at its highest, as JSON; Linux only.
std::string memory() {
    std::map<std::string, long> kib;
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        std::istringstream words(line);
        std::string name;
        words >> name;
        words >> kib[name];
    }
    std::ostringstream json;
    json << "{\"resident_bytes\": " << kib["VmRSS:"] * BYTES_PER_KIB
         << ", \"peak_resident_bytes\": " << kib["VmHWM:"] * BYTES_PER_KIB << "}";
    return json.str();
}

std::string list(const std::vector<double> & numbers) {
    std::ostringstream json;
    for (const double number : numbers) {
        json << (json.tellp() == 0 ? "[" : ", ") << number;
    }
    json << "]";
    return json.str();
}

bool is_current(const fs::path & made, const fs::path & source) {
    return fs::exists(made) && fs::last_write_time(made) >= fs::last_write_time(source);
}

// The models, and where their files are.
struct Model {
    moshi_context_t * moshi;
    moshi_config_t config = stt_1b();
    fs::path lm_source, codec_source, lm, codec;
    std::string precision;

    Model(ggml_backend * backend, const fs::path & folder, const std::string & precision)
        : moshi(moshi_alloc(backend, backend)),
          lm_source(folder / "lm.safetensors"),
          codec_source(folder / "codec.safetensors"),
          lm(folder / ("moshi-cpp-lm-" + precision + ".gguf")),
          codec(folder / "moshi-cpp-codec.gguf"),
          precision(precision) {
        if (!fs::exists(lm_source) || !fs::exists(codec_source)) {
            throw std::runtime_error(folder.string() + ": no checkpoint there");
        }
    }

    moshi_lm_t * open_lm(const fs::path & path) {
        moshi_lm_t * opened = moshi_lm_from_files(moshi, &config, path.c_str());
        if (opened == nullptr) {
            throw std::runtime_error(path.string() + ": cannot be read");
        }
        return opened;
    }

    // Writes the files that are missing; whether there were any.
    bool write() {
        bool wrote = false;
        if (!is_current(codec, codec_source)) {
            const fs::path part = codec.string() + ".part";
            mimi_save_gguf(mimi_alloc(moshi, codec_source.c_str(), CODEBOOKS), part.c_str());
            fs::rename(part, codec);
            wrote = true;
        }
        if (!is_current(lm, lm_source)) {
            const fs::path part = lm.string() + ".part";
            moshi_lm_t * source = open_lm(lm_source);
            // It looks at four characters, without a length.
            if (precision != UNQUANTIZED
                && (precision.size() != 4 || !moshi_lm_quantize(source, precision.c_str()))) {
                throw std::runtime_error("--precision: " + precision + " is unknown to moshi.cpp");
            }
            moshi_lm_load(source);
            moshi_lm_save_gguf(source, part.c_str());
            fs::rename(part, lm);
            wrote = true;
        }
        return wrote;
    }
};

void measure(const Options & options, char ** argv) {
    const int threads = options.contains("--threads")
        ? std::stoi(options.at("--threads"))
        : static_cast<int>(std::thread::hardware_concurrency());
    const int warmup = std::stoi(options.at("--warmup"));
    const int steps = std::stoi(options.at("--steps"));
    std::vector<float> pcm = read_recording(options.at("--recording"));

    ggml_backend * backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads);
    Model model(backend, options.at("--folder"), options.at("--precision"));
    if (model.write()) {
        // Once more from the start: loading time and memory are to be those of serving.
        execvp(argv[0], argv);
        throw std::runtime_error(std::string(argv[0]) + ": cannot start again");
    }

    const auto started = Clock::now();
    mimi_codec_t * codec = mimi_alloc(model.moshi, model.codec.c_str(), CODEBOOKS);
    moshi_lm_t * lm = model.open_lm(model.lm);
    moshi_lm_load(lm);
    mimi_encode_context_t * encoder = mimi_encode_alloc_context(codec);
    moshi_lm_gen_t * generator = moshi_lm_generator(lm);
    // At temperature 0 it takes the likeliest token.
    moshi_lm_start(model.moshi, generator, 0.0f, 0.0f);
    const double load_ms = ms_between(started, Clock::now());
    const std::string loaded = memory();

    const size_t frame_samples = mimi_frame_size(codec);
    const size_t frames = pcm.size() / frame_samples;
    std::vector<double> step_ms, codec_ms, lm_ms;
    std::vector<int16_t> codes(CODEBOOKS);
    for (int step = 0; step < warmup + steps; ++step) {
        int text = 0;
        float pause = 0.0f;
        const auto before = Clock::now();
        mimi_encode_send(encoder, &pcm[step % frames * frame_samples]);
        mimi_encode_receive(encoder, codes.data());
        const auto encoded = Clock::now();
        moshi_lm_send2(generator, codes);
        moshi_lm_receive2(generator, text, pause);
        const auto after = Clock::now();
        if (step >= warmup) {
            step_ms.push_back(ms_between(before, after));
            codec_ms.push_back(ms_between(before, encoded));
            lm_ms.push_back(ms_between(encoded, after));
        }
    }

    std::cout << "{\"engine\": \"moshi.cpp\", \"about\": {\"precision\": \"" << model.precision
              << "\", \"kv_precision\": \"bf16\", \"threads\": " << threads
              << ", \"moshi.cpp\": \"" MOSHI_CPP_REVISION "\", \"ggml\": \"" GGML_REVISION "\""
              << "}, \"lanes\": 1, \"active\": 1, \"load_s\": " << load_ms / 1e3
              << ", \"step_ms\": " << list(step_ms) << ", \"codec_ms\": " << list(codec_ms)
              << ", \"lm_ms\": " << list(lm_ms) << ", \"loaded\": " << loaded
              << ", \"end\": " << memory() << "}\n";
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        measure(read_options(argc, argv), argv);
    } catch (const std::exception & error) {
        std::cerr << "moshi-cpp-step: " << error.what() << "\n";
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
