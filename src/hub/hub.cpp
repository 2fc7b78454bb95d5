// What is in the cache, what the hub says, and how a file comes from there to here.
#include "hub/hub.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <thread>

#include "core/error.h"
#include "core/files.h"
#include "hub/http.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr size_t kAtOnce = 4;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_true(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return static_cast<char>(std::toupper(c)); });
  return text == "1" || text == "TRUE" || text == "YES" || text == "ON";
}

std::string without_end(std::string text, std::string_view end) {
  while (!end.empty() && text.ends_with(end)) text.resize(text.size() - end.size());
  return text;
}

// Of a revision or a path in a URL: "refs/convert/parquet" is one part of it.
std::string escaped(std::string_view text, std::string_view kept) {
  std::string result;
  for (const char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("-._~").find(c) != std::string_view::npos ||
                       kept.find(c) != std::string_view::npos;
    result += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return result;
}

std::string unescaped(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      result += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

// A path of a repository that stays within its folder.
bool is_within(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return !path.empty() && normal.is_relative() && *normal.begin() != "..";
}

// The digest that an etag is: SHA-256 of a large file, git's SHA-1 of another. "" where it is none.
std::string digest_of(const fs::path& file, const std::string& etag) {
  const bool is_sha256 = etag.size() == 64;
  if ((!is_sha256 && etag.size() != 40) || !std::ranges::all_of(etag, [](char c) {
        return std::isxdigit(static_cast<unsigned char>(c));
      }))
    return "";
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> sum(EVP_MD_CTX_new(),
                                                                    EVP_MD_CTX_free);
  EVP_DigestInit_ex(sum.get(), is_sha256 ? EVP_sha256() : EVP_sha1(), nullptr);
  if (!is_sha256) {
    const std::string header = fmt::format("blob {}{}", fs::file_size(file), '\0');
    EVP_DigestUpdate(sum.get(), header.data(), header.size());
  }
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<char> buffer(size_t{1} << 20);
  for (ssize_t count = 0; (count = ::read(fd.get(), buffer.data(), buffer.size())) > 0;)
    EVP_DigestUpdate(sum.get(), buffer.data(), static_cast<size_t>(count));
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(sum.get(), digest.data(), &size);
  std::string text;
  for (unsigned int i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

// One line on a terminal, for all files that come.
class Progress {
 public:
  ~Progress() {
    if (shown_) fmt::print(stderr, "\r\x1b[K");
  }
  void expect(int64_t bytes) { expected_ += bytes; }
  void add(int64_t bytes) {
    done_ += bytes;
    if (!is_terminal_) return;
    const std::lock_guard lock(mutex_);
    const double seconds = std::chrono::duration<double>(Clock::now() - last_).count();
    if (seconds < 0.3) return;
    const double rate =
        static_cast<double>(done_) / std::chrono::duration<double>(Clock::now() - begin_).count();
    fmt::print(stderr, "\r\x1b[KDownloading: {:.1f} of {:.1f} MB, {:.1f} MB/s",
               static_cast<double>(done_) / 1e6, static_cast<double>(expected_) / 1e6, rate / 1e6);
    std::fflush(stderr);
    shown_ = true;
    last_ = Clock::now();
  }
  int64_t done() const { return done_; }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  std::atomic<int64_t> expected_ = 0, done_ = 0;
  std::mutex mutex_;
  const bool is_terminal_ = ::isatty(STDERR_FILENO) == 1;
  bool shown_ = false;
  Clock::time_point begin_ = Clock::now(), last_ = begin_;
};

// One of them at a time, on one machine.
class FileLock {
 public:
  explicit FileLock(const fs::path& file)
      : fd_((fs::create_directories(file.parent_path()),
             ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644))) {
    while (fd_.get() >= 0 && ::flock(fd_.get(), LOCK_EX) != 0 && errno == EINTR) continue;
  }

 private:
  Descriptor fd_;
};

class Repository {
 public:
  Repository(std::string kind, std::string id, const HubOptions& options)
      : kind_(std::move(kind)), id_(std::move(id)), options_(options) {
    folder_name_ = fmt::format("{}--{}", kind_, std::regex_replace(id_, std::regex("/"), "--"));
    folder_ = options_.cache / folder_name_;
  }

  // The snapshot of a revision, if something of it is here.
  std::optional<fs::path> snapshot(const std::string& revision) const {
    std::error_code ignored;
    const fs::path ref = folder_ / "refs" / revision;
    if (!fs::exists(ref, ignored)) return std::nullopt;
    return folder_ / "snapshots" / without_end(read_text_file(ref), "\n");
  }

  bool is_known_absent(const fs::path& snapshot, const std::string& file) const {
    std::error_code ignored;
    return fs::exists(folder_ / ".no_exist" / snapshot.filename() / file, ignored);
  }

  // What the hub says of a revision: its commit and its files.
  std::vector<std::string> list(const std::string& revision, std::string& commit) const {
    const json info = ask(fmt::format("{}/api/{}/{}/revision/{}", options_.endpoint, kind_, id_,
                                      escaped(revision, "")));
    std::vector<std::string> files;
    try {
      commit = info.at("sha").get<std::string>();
      for (const json& file : info.at("siblings")) files.push_back(file.at("rfilename"));
    } catch (const json::exception&) {
      throw run_error("{} gave an answer that is no list of files of {}", options_.endpoint, id_);
    }
    std::ranges::sort(files);
    return files;
  }

  json ask(const std::string& url) const {
    if (options_.offline)
      throw user_error("{} {} is not in {}, and HF_HUB_OFFLINE forbids to ask for it", what(), id_,
                       options_.cache.string());
    const http::Response response = http::fetch({.url = url, .token = options_.token});
    require_success(response, "");
    json parsed = json::parse(response.body, nullptr, false);
    if (parsed.is_discarded())
      throw run_error("{} gave an answer that is no JSON to {}", options_.endpoint, url);
    return parsed;
  }

  // Brings files of a revision, whose commit it returns, into the cache.
  std::string bring(const std::string& revision, const std::vector<std::string>& files,
                    Progress& progress) const {
    std::vector<std::future<std::string>> under_way;
    std::string commit;
    for (size_t i = 0; i < files.size() + kAtOnce; ++i) {
      if (i >= kAtOnce && i - kAtOnce < files.size()) commit = under_way[i - kAtOnce].get();
      if (i >= files.size()) continue;
      under_way.push_back(std::async(
          std::launch::async, [&, file = files[i]] { return download(revision, file, progress); }));
    }
    return commit;
  }

  // Held while small files are written that other processes may write too.
  FileLock lock_notes() const {
    return FileLock(options_.cache / ".locks" / folder_name_ / "refs.lock");
  }
  void note_absent(const std::string& commit, const std::string& file) const {
    const fs::path mark = folder_ / ".no_exist" / commit / file;
    fs::create_directories(mark.parent_path());
    write_text_file(mark, "");
  }
  void note_commit(const std::string& revision, const std::string& commit) const {
    const fs::path ref = folder_ / "refs" / revision;
    fs::create_directories(ref.parent_path());
    write_text_file(ref, commit);
  }
  fs::path folder_of(const std::string& commit) const { return folder_ / "snapshots" / commit; }

  std::string what() const { return kind_ == "models" ? "model" : "data set"; }
  const std::string& id() const { return id_; }
  std::string page() const {
    return options_.endpoint + (kind_ == "models" ? "/" : "/datasets/") + id_;
  }

 private:
  // The hub's refusals, each with what to do.
  void require_success(const http::Response& response, const std::string& file) const {
    if (response.status >= 200 && response.status < 300) return;
    const std::string code = response.header("x-error-code");
    const bool has_token = !options_.token.empty();
    const std::string name = what() + " " + id_;
    if (code == "GatedRepo")
      throw user_error("{} is gated: accept its terms at {}, and give {} in HF_TOKEN or --hf_token",
                       name, page(),
                       has_token ? "the token of who has accepted them" : "your token");
    if (code == "EntryNotFound")
      throw user_error("{} has no file {} on {}", name, file, options_.endpoint);
    if (code == "RevisionNotFound")
      throw user_error("{} has no such revision on {}", name, options_.endpoint);
    if (code == "RepoNotFound" || response.status == 404)
      throw user_error(
          "{} has no {}, or it is private{}: check the name, or give a token that may "
          "read it in HF_TOKEN or --hf_token",
          options_.endpoint, name, has_token ? " and the token may not read it" : "");
    if (response.status == 401 || response.status == 403)
      throw user_error("{} refuses {} ({}): {}", options_.endpoint, name, response.status,
                       has_token ? "the token in HF_TOKEN or --hf_token is not valid for it"
                                 : "give a token in HF_TOKEN or --hf_token");
    if (response.status == 429)
      throw run_error("{} answers that there were too many requests (429): wait some minutes{}",
                      options_.endpoint,
                      has_token ? "" : ", or give a token in HF_TOKEN, which may ask more often");
    const std::string said = response.header("x-error-message");
    throw run_error("{} answers {} for {}{}", options_.endpoint, response.status, name,
                    said.empty() ? "" : ": " + plain_sentence(said));
  }

  // → the commit that the revision is.
  std::string download(const std::string& revision, const std::string& file,
                       Progress& progress) const {
    if (!is_within(file))
      throw user_error("{} {} has a file called {}, which leaves its folder", what(), id_, file);
    const std::string url = fmt::format("{}/{}{}/resolve/{}/{}", options_.endpoint,
                                        kind_ == "models" ? "" : "datasets/", id_,
                                        escaped(revision, ""), escaped(file, "/"));
    const http::Response head =
        http::fetch({.url = url, .token = options_.token, .head = true, .leave = false});
    if (head.status < 300 || head.status >= 400) require_success(head, file);
    std::string etag = head.header("x-linked-etag");
    if (etag.empty()) etag = head.header("etag");
    if (etag.starts_with("W/")) etag.erase(0, 2);
    std::erase(etag, '"');
    const std::string commit = head.header("x-repo-commit");
    if (!is_within(etag) || etag.find('/') != etag.npos || !is_within(commit) ||
        commit.find('/') != commit.npos)
      throw run_error("{} does not say which version of {} it has: is it a hub?", options_.endpoint,
                      file);
    std::string size = head.header("x-linked-size");
    if (size.empty()) size = head.header("content-length");
    const int64_t bytes = std::atoll(size.c_str());

    const fs::path blob = folder_ / "blobs" / etag;
    const FileLock lock(options_.cache / ".locks" / folder_name_ / (etag + ".lock"));
    if (!fs::exists(blob)) bring_blob(url, file, blob, etag, bytes, progress);
    const fs::path link = folder_of(commit) / file;
    fs::create_directories(link.parent_path());
    const fs::path target = blob.lexically_relative(link.parent_path());
    std::error_code taken;
    fs::create_symlink(target, link, taken);
    if (taken && !fs::exists(link)) {  // a link to what is gone
      fs::remove(link);
      fs::create_symlink(target, link);
    }
    return commit;
  }

  void bring_blob(const std::string& url, const std::string& file, const fs::path& blob,
                  const std::string& etag, int64_t bytes, Progress& progress) const {
    fs::create_directories(blob.parent_path());
    const fs::path partial = blob.string() + ".incomplete";
    const Descriptor fd(::open(partial.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    if (fd.get() < 0)
      throw user_error("cannot write {}: {}; set HF_HOME to a folder that is yours",
                       partial.string(), std::strerror(errno));
    auto have = static_cast<int64_t>(fs::file_size(partial));
    if (have > bytes) have = 0;
    progress.expect(bytes - have);
    if (have < bytes) {
      const auto take = [&](std::span<const char> data, int64_t offset) {
        while (!data.empty()) {
          const ssize_t written = ::pwrite(fd.get(), data.data(), data.size(), offset);
          if (written < 0 && errno == EINTR) continue;
          if (written <= 0)
            throw run_error("cannot write {}: {}; make room or set HF_HOME to another folder",
                            partial.string(), std::strerror(errno));
          data = data.subspan(static_cast<size_t>(written));
          offset += written;
          progress.add(written);
        }
      };
      require_success(
          http::fetch({.url = url, .token = options_.token, .from = have, .take = take}), file);
    }
    const auto came = static_cast<int64_t>(fs::file_size(partial));
    const std::string digest = came == bytes ? digest_of(partial, etag) : "";
    if (came != bytes || (!digest.empty() && digest != etag)) {
      fs::remove(partial);
      throw run_error("{} of {} came damaged from {} ({}); it was removed, try again", file, id_,
                      options_.endpoint,
                      came != bytes ? fmt::format("{} bytes instead of {}", came, bytes)
                                    : "its checksum differs");
    }
    if (::fsync(fd.get()) != 0)
      throw run_error("cannot flush {}: {}", partial.string(), std::strerror(errno));
    fs::rename(partial, blob);
  }

  std::string kind_, id_, folder_name_;
  const HubOptions& options_;
  fs::path folder_;
};

std::string brought(const Repository& repository, size_t files, const Progress& progress) {
  return fmt::format("Downloaded {} {}: {} {}, {:.1f} MB, {:.1f} s", repository.what(),
                     repository.id(), files, files == 1 ? "file" : "files",
                     static_cast<double>(progress.done()) / 1e6, progress.seconds());
}

// ----------------------------------------------------------------------------------------- models

const std::vector<std::string> kConfig = {"config.json", "generation_config.json"};
const std::vector<std::string> kTokenizer = {"tokenizer.json", "tokenizer.model",
                                             "tokenizer_config.json", "special_tokens_map.json"};
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_weights(const std::string& file) {
  return file.ends_with(".safetensors") && file.find('/') == std::string::npos;
}

// The weights' files that a snapshot should have; empty where it cannot be told.
std::vector<std::string> weights_in(const fs::path& snapshot) {
  std::error_code ignored;
  if (fs::exists(snapshot / kWeights, ignored)) return {kWeights};
  if (!fs::exists(snapshot / kIndex, ignored)) return {};
  const json index = json::parse(read_text_file(snapshot / kIndex), nullptr, false);
  std::set<std::string> files = {kIndex};
  if (index.is_object() && index.contains("weight_map"))
    for (const json& file : index["weight_map"])
      if (file.is_string()) files.insert(file.get<std::string>());
  return {files.begin(), files.end()};
}

// ------------------------------------------------------------------------------------- data sets

std::vector<std::string> files_under(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end;
       at.increment(error))
    if (at->is_regular_file())
      files.push_back(at->path().lexically_relative(folder).generic_string());
  std::ranges::sort(files);
  return files;
}

// Which files a split is, kept so that a second run need not ask.
fs::path note_of_split(const HubOptions& options, const std::string& id, const std::string& subset,
                       const std::string& split) {
  const std::string name =
      checksum_of(fmt::format("{}\n{}\n{}\n{}", options.endpoint, id, subset, split));
  return options.cache / ".picotron" / (name + ".json");
}

std::optional<std::vector<fs::path>> noted_files(const fs::path& note) {
  std::error_code ignored;
  if (!fs::exists(note, ignored)) return std::nullopt;
  const json noted = json::parse(read_text_file(note), nullptr, false);
  if (!noted.is_array()) return std::nullopt;
  std::vector<fs::path> files;
  for (const json& file : noted) {
    if (!file.is_string() || !fs::exists(file.get<std::string>(), ignored)) return std::nullopt;
    files.emplace_back(file.get<std::string>());
  }
  return files;
}

std::vector<fs::path> in_folder(const fs::path& folder, const std::vector<std::string>& files) {
  std::vector<fs::path> paths;
  for (const std::string& file : files) paths.push_back(folder / file);
  return paths;
}

// The hub's own Parquet files of a data set: {subset: {split: [url, …]}}.
struct Converted {
  std::string revision;
  std::vector<std::string> files;
};

Converted converted_files(const Repository& repository, const std::string& endpoint,
                          const std::string& subset, const std::string& split) {
  const json all =
      repository.ask(fmt::format("{}/api/datasets/{}/parquet", endpoint, repository.id()));
  std::vector<std::string> there;
  if (all.is_object()) {
    for (const auto& [name, splits] : all.items())
      for (const auto& [part, urls] : splits.items()) there.push_back(name + " " + part);
  }
  std::string name = subset;
  if (name.empty() && all.is_object() && !all.empty())
    name = all.contains("default") ? "default" : all.items().begin().key();
  if (!subset.empty() || !all.is_object() || all.size() == 1 || all.contains("default")) {
    if (all.is_object() && all.contains(name) && all[name].contains(split)) {
      // …/datasets/ID/resolve/REVISION/PATH
      Converted result;
      const std::regex form(".*/resolve/([^/]+)/(.+)");
      for (const json& url : all[name][split]) {
        std::smatch part;
        const std::string text = url.is_string() ? url.get<std::string>() : "";
        if (!std::regex_match(text, part, form))
          throw run_error("{} names a Parquet file in a form that is not known: {}", endpoint,
                          plain_sentence(text));
        result.revision = unescaped(part[1]);
        result.files.push_back(unescaped(part[2]));
      }
      return result;
    }
  }
  throw user_error(
      "data set {} has no Parquet files of split {}{}; dataset.subset_name and dataset.split may "
      "be "
      "{}",
      repository.id(), split, subset.empty() ? "" : " of subset " + subset,
      there.empty() ? "none" : fmt::format("{}", fmt::join(there, ", ")));
}

}  // namespace

HubOptions hub_options(const std::optional<std::string>& given_token) {
  HubOptions options;
  options.endpoint = without_end(variable("HF_ENDPOINT"), "/");
  if (options.endpoint.empty()) options.endpoint = "https://huggingface.co";
  options.offline = is_true(variable("HF_HUB_OFFLINE"));
  const fs::path home = variable("HOME"), xdg = variable("XDG_CACHE_HOME");
  fs::path hf_home = variable("HF_HOME");
  if (hf_home.empty()) hf_home = (xdg.empty() ? home / ".cache" : xdg) / "huggingface";
  options.cache = variable("HF_HUB_CACHE");
  if (options.cache.empty()) options.cache = hf_home / "hub";
  options.token = variable("HF_TOKEN");
  if (options.token.empty()) options.token = given_token.value_or("");
  fs::path token_file = variable("HF_TOKEN_PATH");
  if (token_file.empty()) token_file = hf_home / "token";
  std::error_code ignored;
  if (options.token.empty() && fs::is_regular_file(token_file, ignored))
    options.token = read_text_file(token_file);
  std::erase_if(options.token, [](char c) { return std::isspace(static_cast<unsigned char>(c)); });
  return options;
}

bool is_hub_id(const std::string& name) {
  static const std::regex form("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*");
  std::error_code ignored;
  return std::regex_match(name, form) && !fs::exists(name, ignored);
}

fs::path fetch_model(const std::string& id, ModelFiles files, const HubOptions& options,
                     std::vector<std::string>& notes) {
  const Repository repository("models", id, options);
  std::vector<std::string> small = kTokenizer;
  if (files != ModelFiles::tokenizer) small.insert(small.end(), kConfig.begin(), kConfig.end());
  if (files == ModelFiles::config) small = kConfig;
  if (files == ModelFiles::tokenizer) small.emplace_back("config.json");

  std::error_code ignored;
  if (const auto snapshot = repository.snapshot("main")) {
    const auto is_here = [&](const std::string& file) {
      return fs::exists(*snapshot / file, ignored) || repository.is_known_absent(*snapshot, file);
    };
    const std::vector<std::string> weights = weights_in(*snapshot);
    const bool has_weights = !weights.empty() && std::ranges::all_of(weights, is_here);
    const bool needs_weights = files == ModelFiles::all;
    // Without the hub what is here must do: it may be all there is.
    const bool has_what_matters =
        files == ModelFiles::config      ? fs::exists(*snapshot / "config.json", ignored)
        : files == ModelFiles::tokenizer ? fs::exists(*snapshot / "tokenizer.json", ignored) ||
                                               fs::exists(*snapshot / "tokenizer.model", ignored)
                                         : has_weights;
    if ((std::ranges::all_of(small, is_here) && (has_weights || !needs_weights)) ||
        (options.offline && has_what_matters))
      return *snapshot;
  }
  std::string commit;
  const std::vector<std::string> there = repository.list("main", commit);
  std::vector<std::string> wanted;
  for (const std::string& file : there)
    if (std::ranges::count(small, file) > 0 ||
        (files == ModelFiles::all && (is_weights(file) || file == kIndex)))
      wanted.push_back(file);
  if (files == ModelFiles::all && std::ranges::none_of(wanted, is_weights))
    throw user_error("model {} has no .safetensors file on {}; give a model that has", id,
                     options.endpoint);
  if (files != ModelFiles::tokenizer && std::ranges::count(there, "config.json") == 0)
    throw user_error("model {} has no config.json on {}; is it a model?", id, options.endpoint);
  Progress progress;
  repository.bring(commit, wanted, progress);
  const FileLock lock = repository.lock_notes();
  for (const std::string& file : small)
    if (std::ranges::count(there, file) == 0) repository.note_absent(commit, file);
  repository.note_commit("main", commit);
  if (progress.done() > 0) notes.push_back(brought(repository, wanted.size(), progress));
  return repository.folder_of(commit);
}

std::vector<std::string> parquet_files_of(const std::vector<std::string>& files,
                                          const std::string& subset, const std::string& split) {
  struct Parts {
    std::string file, stem;
    std::vector<std::string> folders;
    bool is_in(const std::string& folder) const { return std::ranges::count(folders, folder) > 0; }
  };
  std::vector<Parts> all;
  for (const std::string& file : files) {
    const fs::path path(file);
    if (path.extension() != ".parquet") continue;
    Parts parts{file, path.stem().string(), {}};
    for (const fs::path& part : path.parent_path()) parts.folders.push_back(part.string());
    all.push_back(parts);
  }
  const auto is_split = [&](const Parts& p) {
    const bool named =
        p.stem.starts_with(split) &&
        (p.stem.size() == split.size() ||
         std::string_view("-._").find(p.stem[split.size()]) != std::string_view::npos);
    return named || p.is_in(split);
  };
  const auto is_of_default = [&](const Parts& p) {
    return std::ranges::all_of(p.folders, [&](const std::string& folder) {
      return folder == "data" || folder == "default" || folder == split;
    });
  };
  std::vector<std::string> chosen;
  for (const Parts& parts : all) {
    const bool is_of_subset = subset.empty() ? is_of_default(parts) : parts.is_in(subset);
    if (is_of_subset && is_split(parts)) chosen.push_back(parts.file);
  }
  std::ranges::sort(chosen);
  return chosen;
}

std::vector<fs::path> fetch_dataset(const std::string& id, const std::string& subset,
                                    const std::string& split, const HubOptions& options,
                                    std::vector<std::string>& notes) {
  const Repository repository("datasets", id, options);
  const fs::path note = note_of_split(options, id, subset, split);
  if (const auto files = noted_files(note)) return *files;
  if (options.offline) {
    // What another program has brought.
    if (const auto snapshot = repository.snapshot("main")) {
      const auto files = parquet_files_of(files_under(*snapshot), subset, split);
      if (!files.empty()) return in_folder(*snapshot, files);
    }
  }
  Converted wanted;
  wanted.files = parquet_files_of(repository.list("main", wanted.revision), subset, split);
  const bool is_own = !wanted.files.empty();
  if (!is_own) wanted = converted_files(repository, options.endpoint, subset, split);
  Progress progress;
  const std::string commit = repository.bring(wanted.revision, wanted.files, progress);
  const FileLock lock = repository.lock_notes();
  repository.note_commit(is_own ? "main" : wanted.revision, commit);
  const std::vector<fs::path> files = in_folder(repository.folder_of(commit), wanted.files);
  json list = json::array();
  for (const fs::path& file : files) list.push_back(file.string());
  fs::create_directories(note.parent_path());
  write_text_file(note, list.dump(1) + "\n");
  if (progress.done() > 0) notes.push_back(brought(repository, files.size(), progress));
  return files;
}

}  // namespace picotron
